import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", ROOT],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = (folder / "dist").glob("robustfg-*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "site", wheel], check=True
    )
    return wheel, folder / "site"


@pytest.mark.process
def test_wheel_holds_the_whole_config_tree_and_the_page(installed):
    names = set(zipfile.ZipFile(installed[0]).namelist())
    expected = {f"robustfg/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(expected) > 40
    assert expected | {"robustfg/reporting/page.html.jinja", "robustfg/py.typed"} <= names


@pytest.mark.process
def test_wheel_installed_elsewhere_trains_from_any_directory(installed, tmp_path):
    site = installed[1]
    environment = os.environ | {"PYTHONPATH": str(site)}
    where = subprocess.run(
        [sys.executable, "-c", "import robustfg.cli.config as c; print(c.__file__, c.CONF)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert [Path(path).is_relative_to(site) for path in where] == [True, True]
    done = subprocess.run(
        [sys.executable, "-m", "robustfg.train", "experiment=smoke", "run_name=w", "trainer.max_epochs=1",
         "trainer.limit_train_batches=2", "attack=fgsm", "evaluation.checks=0", "trainer.enable_progress_bar=false"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "digits-softmax" / "w" / "robustness" / "report.html").is_file()
