"""A headless Chromium, driven by Selenium, for the tests of the explorer's page."""

import shutil

import pytest

from tinydiff.backend import backend_name

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

# Chromium as root in a container, with nothing that would go out to the network.
FLAGS = """
    headless no-sandbox disable-gpu disable-dev-shm-usage disable-quic no-first-run disable-sync
    disable-background-networking disable-component-update hide-scrollbars
"""


def started(profile):
    """The driver of a new browser with that folder for its profile.  The test is skipped where there is none."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver: apt-get install chromium-driver (Debian)")
    if backend_name() != "numpy":
        pytest.skip("one backend is enough: the page holds no arrays")
    webdriver = pytest.importorskip("selenium.webdriver", reason='no selenium: pip install -e ".[browser]"')
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"user-data-dir={profile}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


def show(driver, width, scheme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def settled(driver):
    """Wait until every picture that was asked for is decoded and drawn."""
    driver.execute_async_script(
        "const done = arguments[0];"
        "Promise.all(pictures.values()).then(() => requestAnimationFrame(() => setTimeout(done)))"
    )
