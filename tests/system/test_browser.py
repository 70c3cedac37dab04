"""What a person sees: MLflow's UI over real runs, and the report, in a real browser without a window."""

import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from pipeline.evaluation.comparison import PHRASES
from pipeline.tracking.client import client_at
from pipeline.tracking.ui import AS_TRAINING
from tests.pipeline.tracking.test_tracker import free_port, running
from tests.workdir import Workdir, copy_of

if TYPE_CHECKING:  # MLflow is imported by client_at, which makes it quiet first
    from mlflow import MlflowClient

SECONDS = 60
"""How long a page may take on a busy machine."""
WINDOW = (2000, 1300)
MODEL = "transformer-2x16 tiny temporal"


class Place(NamedTuple):
    """Three runs and their comparison, and where MLflow shows them."""

    workdir: Workdir
    client: "MlflowClient"
    experiment: str
    server: str
    compared: str
    """The run that `lookback compare` logged."""

    def page(self, path: str) -> str:
        """The address of a page of the experiment."""
        return f"{self.server}/#/experiments/{self.experiment}/{path}{AS_TRAINING}"

    def run(self, name: str) -> Any:
        """The run of a name; where there are several, the newest."""
        return self.client.search_runs([self.experiment], f"attributes.run_name = '{name}'")[0]


@pytest.fixture(scope="module")
def place(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("browser")
    workdir = copy_of(pristine, folder / "copy")
    for dim in ("8", "4"):
        workdir.run("evaluate", "--set", f"model.dim={dim}", "--set", "train.epochs=1")
    client = client_at(f"sqlite:///{workdir.folder}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    names = [f"transformer-2x{dim} tiny temporal" for dim in (16, 8, 4)]
    compared = workdir("compare", *names, "--json", "--html", str(workdir.folder / "compare.html"))
    assert compared.code == 0, compared.err
    with served(workdir, folder / "elsewhere") as server:
        yield Place(workdir, client, experiment.experiment_id, server, compared.json["run_id"])


@contextlib.contextmanager
def served(workdir: Workdir, elsewhere: Path) -> Iterator[str]:
    """The address of `lookback ui` over a working directory, started from another folder, where server.log is."""
    elsewhere.mkdir()
    port = free_port()
    command = [sys.executable, "-m", "pipeline", "ui", "--config", str(workdir.folder / "tiny.toml")]
    uri = f"tracking.uri=sqlite:///{workdir.folder}/mlruns/mlflow.db"
    with running([*command, "--set", uri, "--port", str(port)], port, elsewhere):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Debian's chromium with its own driver; nothing is downloaded."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip(
            "chromium and chromium-driver are not installed (apt-get install chromium chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for each in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}"):
        options.add_argument(each)
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_window_size(*WINDOW)
    try:
        yield opened
    finally:
        opened.quit()


@pytest.fixture
def see(browser: webdriver.Chrome, tmp_path: Path) -> Callable[..., str]:
    """Open an address and wait until its text has all of the words; a picture of it is kept with the test's files."""

    def open_and_wait(address: str, *words: str) -> str:
        browser.get("about:blank")
        browser.get(address)
        try:
            return wait_for(browser, *words)
        finally:
            browser.save_screenshot(str(tmp_path / "seen.png"))

    return open_and_wait


def wait_for(browser: webdriver.Chrome, *words: str) -> str:
    """The page's text, as soon as it has all of the words."""

    def text(_: object) -> str | None:
        with contextlib.suppress(StaleElementReferenceException):
            found = browser.find_element(By.TAG_NAME, "body").text
            seen.append(found)
            return found if all(word in found for word in words) else None
        return None

    seen: list[str] = []
    waiting = WebDriverWait(browser, SECONDS)
    with contextlib.suppress(Exception):
        return str(waiting.until(text))
    missing = [word for word in words if word not in "".join(seen[-1:])]
    raise AssertionError(f"{missing} did not appear in: {''.join(seen[-1:])}")


@contextlib.contextmanager
def inside_frame(browser: webdriver.Chrome) -> Iterator[None]:
    """Within the page's one frame: an HTML artifact."""
    WebDriverWait(browser, SECONDS).until(lambda driver: driver.find_elements(By.TAG_NAME, "iframe"))
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    try:
        yield
    finally:
        browser.switch_to.default_content()


def cells(browser: webdriver.Chrome) -> dict[str, list[str]]:
    """What the list of runs shows, from column to texts from top to bottom."""
    script = """
        const found = {};
        const rows = [...document.querySelectorAll('.ag-row')];
        rows.sort((one, other) => one.getAttribute('row-index') - other.getAttribute('row-index'));
        for (const row of rows)
            for (const cell of row.querySelectorAll('.ag-cell'))
                (found[cell.getAttribute('col-id')] ??= []).push(cell.innerText);
        return found;
    """
    found: dict[str, list[str]] = browser.execute_script(script)
    return found


@pytest.mark.slow
def test_the_ui_opens_on_the_runs(
    copied: Workdir, tmp_path: Path, browser: webdriver.Chrome, see: Callable[..., str]
) -> None:
    with served(copied, tmp_path / "elsewhere") as server:
        address = shown_address(tmp_path / "elsewhere")
        assert address.startswith(f"{server}/#/experiments/")
        see(address, "Best by NDCG@10", MODEL.split(maxsplit=1)[0])
        assert len(cells(browser)["metrics.`test/ndcg_at_10`"]) == 1


def shown_address(elsewhere: Path) -> str:
    """The address that `lookback ui` printed."""
    address = re.search(r"MLflow: (\S+) ", (elsewhere / "server.log").read_text())
    assert address is not None
    return address[1]


@pytest.mark.slow
def test_the_runs_of_the_experiment_are_listed_the_best_first(
    place: Place, browser: webdriver.Chrome, see: Callable[..., str]
) -> None:
    see(f"{place.server}/#/experiments", "tiny")
    address = shown_address(place.workdir.folder.parent / "elsewhere")
    assert address.startswith(f"{place.server}/#/experiments/{place.experiment}/runs?")
    runs = sorted(
        (place.run(f"transformer-2x{dim} tiny temporal") for dim in (16, 8, 4)),
        key=lambda run: -float(run.data.metrics["test/ndcg_at_10"]),
    )
    browser.set_window_size(3200, 1300)  # columns out of sight are not on the page
    page = see(address, "Best by NDCG@10", *(f"transformer-2x{dim}" for dim in (16, 8, 4)))
    assert "train transformer" not in page, "the runs of stages are not in the way"
    names = re.findall(r"transformer-2x\d+", page)
    assert names[:3] == [run.info.run_name.split()[0] for run in runs], "the best first"
    columns = cells(browser)
    browser.set_window_size(*WINDOW)
    shown = [float(text) for text in columns["metrics.`test/ndcg_at_10`"]]
    assert shown == pytest.approx([run.data.metrics["test/ndcg_at_10"] for run in runs])
    for tag in ("ndcg_at_10", "changed_settings", "best_baseline"):
        assert columns[f"tags.`lookback.{tag}`"] == [run.data.tags[f"lookback.{tag}"] for run in runs]
    assert len(set(columns["tags.`lookback.best_baseline`"])) == 1, "the same baselines"
    told_apart = columns["tags.`lookback.against_earlier_runs`"]
    verdicts = {words.rpartition(" ")[0] for words in PHRASES.values()}
    assert [each.partition(",")[0] in verdicts for each in told_apart].count(True) == 2
    assert "no earlier run has the same targets" in told_apart
    assert all("ItemKNN" in each for each in columns["tags.`lookback.against_baselines`"])


@pytest.mark.slow
def test_a_run_says_how_good_it_is_and_whether_that_is_real(place: Place, see: Callable[..., str]) -> None:
    run = place.run("transformer-2x4 tiny temporal")
    shown = ("Finished", "Child runs", "evaluate transformer-2x4 tiny temporal", "lookback.protocol")
    address = f"{place.server}/#/experiments/{place.experiment}/runs/{run.info.run_id}"
    page = see(address, "NDCG@10", "Parameters", *shown)
    report = place.workdir.artifact("evaluate", "--set", "model.dim=4", "--set", "train.epochs=1")
    assert f"{run.data.metrics['test/ndcg_at_10']:.4f}" in page
    assert "Paired test: " in page
    assert "Earlier runs on the same targets: " in page
    assert report.exists()


@pytest.mark.slow
def test_a_training_s_curves(place: Place, browser: webdriver.Chrome, see: Callable[..., str]) -> None:
    run_id = place.run(f"train {MODEL}").info.run_id
    see(place.page(f"runs/{run_id}/model-metrics"), "loss", "validation_ndcg_at_10")
    WebDriverWait(browser, SECONDS).until(
        lambda driver: len(driver.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .lines path")) >= 2
    )
    see(place.page(f"runs/{run_id}/system-metrics"), "cpu_utilization_percentage")


@pytest.mark.slow
def test_figures_and_report_are_shown_as_artifacts(
    place: Place, browser: webdriver.Chrome, see: Callable[..., str]
) -> None:
    folder = f"runs/{place.run(MODEL).info.run_id}/artifacts/report"
    see(place.page(f"{folder}/figures.html"), "figures.html")
    with inside_frame(browser):
        wait_for(browser, "Against the baselines", "Popularity against recommendations")
        charts = len(browser.find_elements(By.CSS_SELECTOR, ".chart"))
        WebDriverWait(browser, SECONDS).until(
            lambda driver: len(driver.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .main-svg")) >= charts
        )
        assert charts >= 12
        assert not browser.find_element(By.ID, "failed").is_displayed()
    see(place.page(f"{folder}/report.html"), "report.html")
    with inside_frame(browser):
        wait_for(browser, "Quality on held-out events", "Since the champion", "Example recommendations")


@pytest.mark.slow
def test_an_evaluation_alone_has_figures_to_look_into(
    place: Place, browser: webdriver.Chrome, see: Callable[..., str]
) -> None:
    run_id = place.run("transformer-2x4 tiny temporal").info.run_id
    see(place.page(f"runs/{run_id}/artifacts/evaluate/figures.html"), "figures.html")
    with inside_frame(browser):
        wait_for(browser, "Against the baselines", "Recall against the length of the list", "Training")
        charts = len(browser.find_elements(By.CSS_SELECTOR, ".chart"))
        WebDriverWait(browser, SECONDS).until(
            lambda driver: len(driver.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .main-svg")) >= charts
        )
    assert charts >= 10
    whole = {file.path for file in place.client.list_artifacts(place.run(MODEL).info.run_id, "evaluate")}
    assert "evaluate/figures.html" not in whole, "the report's page has them all"


@pytest.mark.slow
def test_the_table_of_systems(place: Place, see: Callable[..., str]) -> None:
    run_id = place.run(f"evaluate {MODEL}").info.run_id
    see(place.page(f"runs/{run_id}/artifacts/evaluate/systems.json"), "system", "lookback", "popularity")


@pytest.mark.slow
def test_the_registered_model_has_a_card_and_an_alias(place: Place, see: Callable[..., str]) -> None:
    page = see(f"{place.server}/#/models/lookback-tiny/versions/1", "@ champion", "Limits.")
    for said in (
        "Data.",
        "Protocol.",
        "Metrics of the evaluated weights",
        "Served worst.",
        "How to score.",
        "Gate.",
    ):
        assert said in page


@pytest.mark.slow
def test_who_has_never_seen_the_project_knows_which_of_three_runs_is_best(
    place: Place, browser: webdriver.Chrome, see: Callable[..., str]
) -> None:
    page = see(place.page(f"runs/{place.compared}"), "is best on NDCG@10")
    runs = [place.run(f"transformer-2x{dim} tiny temporal") for dim in (16, 8, 4)]
    best = max(runs, key=lambda run: float(run.data.metrics["test/ndcg_at_10"]))
    assert f"{best.info.run_name} is best on NDCG@10 ({best.data.metrics['test/ndcg_at_10']:.4f})" in page
    assert "95 % interval" in page
    see(place.page(f"runs/{place.compared}/artifacts/compare.html"), "compare.html")
    with inside_frame(browser):
        text = wait_for(browser, "3 runs compared", "verdict")
        assert any(verdict in text for verdict in ("better", "worse", "no significant difference"))
    assert (place.workdir.folder / "compare.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_the_report_is_searched_without_a_network(
    place: Place, browser: webdriver.Chrome, see: Callable[..., str]
) -> None:
    report = place.workdir.artifact("report") / "report.html"
    see(report.as_uri(), "Example recommendations")
    users = browser.find_elements(By.CSS_SELECTOR, ".user")
    assert len(users) == 20
    wanted = users[7].find_element(By.TAG_NAME, "h3").text
    browser.find_element(By.ID, "search").send_keys(wanted)
    WebDriverWait(browser, SECONDS).until(
        lambda driver: [each for each in users if each.is_displayed()] == [users[7]]
    )
    assert "1 of 20" in browser.find_element(By.ID, "matches").text
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert [each for each in loaded if not each.startswith("data:")] == []
