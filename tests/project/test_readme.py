"""The README is true: its commands parse, its files exist, its code runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import compare_kd
import evaluate_kd
from kd_core.config import Layer, command_line, find_file, parse_yaml, resolve
from kd_sweeps.sweep_file import read_sweep
from kd_sweeps.trial_command import check_extra, with_own_configs

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


COMPARING_PAGE = (ROOT / "docs" / "comparing.md").read_text()
WANDB_PAGE = (ROOT / "docs" / "wandb.md").read_text()
COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
COMPARISONS = [line for line in [*COMMANDS, *COMPARING_PAGE.splitlines()] if line.startswith("python")]
REFERENCE = "\n".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("data", "runs", "teachers"))
TRAININGS = [*COMMANDS, *(line for line in REFERENCE.splitlines() if line.startswith("python train_kd.py"))]
SWEEPS = [
    line for line in [*COMMANDS, *WANDB_PAGE.splitlines()] if "sweeps/" in line and line[:6] in ("python", "wandb ")
]


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def arguments(command: str, script: str) -> list[str]:
    given = words(command)
    return given[given.index(script) + 1 :]


@pytest.mark.parametrize("command", [c for c in dict.fromkeys(TRAININGS) if "train_kd.py" in words(c)])
def test_training_command_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments(command, "train_kd.py")
    if "--help" in given:
        with pytest.raises(SystemExit, match="0"):
            command_line.parse(given)
        assert "--kd.type=" in capsys.readouterr().out
        return
    config = command_line.parse(given)[1].config
    for teacher in config.teachers:
        if teacher.train:
            find_file(teacher.train, "teachers[].train")


EXPORT_PAGE = (ROOT / "docs" / "export.md").read_text().splitlines()
EVALUATIONS = [line for line in [*COMMANDS, *EXPORT_PAGE] if line.startswith("python evaluate_kd.py")]


@pytest.mark.parametrize("command", EVALUATIONS)
def test_evaluation_command_parses(command: str) -> None:
    options, _ = evaluate_kd.parse(arguments(command, "evaluate_kd.py"))
    for name in options.config:
        find_file(name, "--config")


@pytest.mark.parametrize("command", [c for c in COMPARISONS if "compare_kd.py" in words(c)])
def test_comparison_command_parses(command: str) -> None:
    assert compare_kd.parse(arguments(command, "compare_kd.py")).runs


@pytest.mark.parametrize("command", [c for c in COMPARISONS if "--seeds" in words(c)])
def test_command_of_several_seeds_parses(command: str) -> None:
    assert command_line.parse(arguments(command, "train_kd.py"))[0].seeds


@pytest.mark.parametrize("command", [c for c in SWEEPS if "run_local.py" in c or c.startswith("wandb sweep")])
def test_sweep_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = words(command)
    [path] = [word for word in given if word.endswith(".yaml") and word.startswith("sweeps/")]
    sweep = read_sweep(ROOT / path)
    if "--" in given:
        extra = given[given.index("--") + 1 :]
        check_extra(sweep, extra)
        monkeypatch.setenv("KD_TRIAL", "testtest")
        sweep = with_own_configs(sweep, extra)
        fixed = [word for word in sweep.command[sweep.command.index("${program}") + 1 :] if word != "${args}"]
        command_line.parse([*fixed, *extra])


def test_every_script_and_switch_is_shown() -> None:
    shown = {word.partition("=")[0] for command in COMMANDS for word in words(command)}
    assert {
        "train_kd.py",
        "evaluate_kd.py",
        "compare_kd.py",
        "--check",
        "--fresh",
        "--resume",
        "--print-config",
        "--help",
    } <= shown
    assert {"--seeds", "--metric", "--also", "--baseline", "--rows", "--cols", "--out"} <= shown
    assert {"--checkpoint", "--artifact", "--wandb-run-id", "--split", "--export", "--images"} <= shown


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    asked = {words(command)[1] for command in COMMANDS if words(command)[0] == "make"}
    assert asked == {"quickstart", "test"} and asked <= targets


def test_teachers_in_yaml_are_valid() -> None:
    (block,) = blocks("yaml")
    values = {"kd": {"type": "average"}, **parse_yaml(block, "README.md")}
    config = resolve([Layer("README.md", values)]).config
    assert len(config.teachers) == 7
    for teacher in config.teachers:
        if teacher.train:
            find_file(teacher.train, "teachers[].train")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), f"{document.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


def test_named_files_exist() -> None:
    """Files of the project that documents and messages name; UPPER CASE stands for the reader's own."""
    in_text = (
        r"\b(?:benchmarks|configs|docs|kd_core|kd_methods|sweeps|tests)/[\w./-]*[\w/]|\b[a-z_-]+\.(?:py|yaml|txt|md)\b"
    )
    in_code = r"\bconfigs/[\w./-]+\.yaml"
    # methods.md shows how to make new files
    others = "architecture comparing data diagnosis export logits performance report runs scaling teachers wandb"
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs" / f"{name}.md" for name in others.split())]
    codes = [*ROOT.glob("*_kd.py"), *(ROOT / "kd_core").rglob("*.py")]
    named = [(path, in_text) for path in texts] + [(path, in_code) for path in codes]
    missing = [
        f"{path.name}: {name}"
        for path, pattern in named
        for name in sorted(set(re.findall(pattern, path.read_text())))
        if not exists(name)
    ]
    assert not missing


def exists(name: str) -> bool:
    written = {"config.yaml", "best.yaml", "resolved_config.yaml", "comparison.md"}  # by the scripts
    if any(Path(part).stem.isupper() for part in Path(name).parts) or name in written:  # or the reader's own
        return True
    return (ROOT / name).exists() or "/" not in name and any(ROOT.glob(f"[a-z]*/{name}"))


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the README's loop and its second form, with features, print."""
    script = tmp_path_factory.mktemp("readme") / "loop.py"
    script.write_text("\n".join(["import torch", "torch.manual_seed(0)", *blocks("python")]))
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_readme_loop_runs_and_learns(printed: list[str]) -> None:
    match = re.fullmatch(r"training accuracy ([\d.]+)%", printed[0])
    assert match and float(match[1]) > 90


def test_so_does_its_form_with_features(printed: list[str]) -> None:
    match = re.fullmatch(r"training accuracy ([\d.]+)%, feature loss ([\d.]+)", printed[1])
    assert match and float(match[1]) > 90 and 0 < float(match[2]) < 1 and len(printed) == 2
