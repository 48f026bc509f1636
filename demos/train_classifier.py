"""Train the classifier that reads generated digits, with the engine that draws them: 99.5% of MNIST in some minutes.

    python demos/train_classifier.py                 then:  python demos/classify.py SAMPLES.npz

Goes to --out: checkpoint.npz, and misread.png, the test digits that it gets most confidently wrong.
"""

from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinydiff import checkpoint, cli, plots
from tinydiff.classify import (
    ClassifierConfig,
    build_classifier,
    misread_rows,
    read,
    save_classifier,
    train_classifier,
)
from tinydiff.data import NAMES, load
from tinydiff.parallel import Workers, default_workers


def main(
    backend="numpy",
    precision=None,
    data="auto",
    data_dir=None,
    num_train=None,
    num_test=None,
    steps=ClassifierConfig.num_steps,
    batch_size=ClassifierConfig.batch_size,
    seed=ClassifierConfig.seed,
    workers=None,
    out="runs/classifier",
):
    """num_train, num_test: the first so many images of a split, None for all.  Returns how many of test are misread."""
    cli.start(backend, precision)
    workers = workers or default_workers()
    out = Path(out)
    config = ClassifierConfig(num_steps=steps, batch_size=batch_size, seed=seed)
    dataset = load(data, "train", data_dir, seed, num_train)
    test = load(dataset.name, "test", data_dir, seed, num_test)
    model_config = {"num_classes": len(dataset.classes)}
    with Workers(partial(build_classifier, model_config, seed), workers) as pool:
        print(f"data: {dataset.source}")
        print(f"network: {pool.model.num_parameters():,} parameters; {workers} worker(s); results in {out}/")
        with tqdm(total=steps * batch_size, unit="img", dynamic_ncols=True) as bar:
            smooth = 0.0
            for step, loss in enumerate(train_classifier(pool, dataset, config)):
                smooth += (loss - smooth) / min(step + 1, 50)
                bar.set_postfix_str(f"step {step + 1}, loss {smooth:.4f}", refresh=False)
                bar.update(batch_size)
        images, labels = test.batch(np.arange(len(test)))
        probabilities = np.concatenate(list(read(pool, images)))
        errors = int((probabilities.argmax(1) != labels).sum())
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.set_aside(out / "checkpoint.npz")
        save_classifier(out / "checkpoint.npz", pool, config, dataset, test, errors)
    print(f"{test.source}: {errors} of {len(test):,} misread, {1 - errors / len(test):.2%} right")
    pictures, captions = misread_rows(images, labels, probabilities, test.classes)
    if captions:
        title = f"{test.name}: the most confidently misread of {errors} in {len(test):,}"
        columns = len(pictures) // len(captions)
        plots.save_grid(out / "misread.png", pictures, columns=columns, title=title, row_labels=captions)
    return errors


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    parser.add_argument("--data", choices=NAMES, help="auto: MNIST, or embedded glyphs where it cannot be had")
    parser.add_argument("--data-dir", metavar="DIR", help="folder that holds the data files")
    parser.add_argument("--steps", type=cli.positive_int, help="how many batches to train on")
    parser.add_argument("--batch-size", type=cli.positive_int, help="images a step")
    parser.add_argument("--seed", type=cli.non_negative_int, help="of everything random")
    parser.add_argument("--workers", type=cli.positive_int, help="processes that share a batch (default: one a core)")
    parser.add_argument("--out", metavar="DIR", help="folder for the results")
    cli.run(main, parser)
