"""The teacher cache: what is read equals what would be computed, whatever happened to the files."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from warm_process import WarmProcess

import train_kd
from kd_core import config as configuration
from kd_core.config import command_line
from kd_core.data.plan import Batch
from kd_core.data.views import Augmentation, draw_views, fixed_view_ids
from kd_core.errors import UserError
from kd_core.files import read_json
from kd_core.models import build as models
from kd_core.run.folder import read_metrics
from kd_core.teachers import cache
from kd_core.teachers import logits as teacher_logits
from kd_core.teachers.cache import CachedTeacher, Store, open_store, row_checksums
from kd_core.teachers.logits import TeacherLogits

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"views": 3, "rows": 40, "classes": 7}


class NothingOpened(set):
    """Of stores: as if each were opened by another process."""

    def __contains__(self, store: object) -> bool:
        return False


def missing(store: Store, slots: torch.Tensor) -> torch.Tensor:
    """The slots among int64 [n] that are not filled or damaged."""
    return slots[~store.sound(slots)]


def make(folder: Path, name: str = "a", max_gb: float = 1.0, **shape: int) -> Store:
    about = {"teacher": name, "view": "some"}
    return open_store(folder, {"name": name}, **{**SHAPE, **shape}, about=about, max_gb=max_gb)


def logits(count: int, classes: int = 7) -> torch.Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(count)).half()


# ------------------------------------------------------------------------------------------------------- the store


def test_rows_are_found_again_by_another_process_and_the_rest_is_missing(tmp_path):
    slots, values = torch.tensor([0, 5, 119, 41]), logits(4)
    make(tmp_path).write(slots, values)
    again, some = make(tmp_path), torch.tensor([41, 5, 6])
    assert again.sound(some).tolist() == [True, True, False]
    assert torch.equal(again.read(some)[:2], values[[3, 1]])
    everything = torch.arange(3 * 40)
    assert set(missing(make(tmp_path), everything).tolist()) == set(everything.tolist()) - set(slots.tolist())
    assert make(tmp_path).filled() == pytest.approx(4 / 120)


def test_a_row_of_zeros_is_not_an_empty_row(tmp_path):
    store = make(tmp_path)
    store.write(torch.tensor([3]), torch.zeros(1, 7).half())
    assert store.sound(torch.tensor([3, 4])).tolist() == [True, False]


def test_every_damage_to_a_row_makes_it_missing(tmp_path):
    store, values = make(tmp_path), logits(120)
    store.write(torch.arange(120), values)
    for name, size in (("logits", 14), ("checks", 4)):
        path = store.folder / name
        original = path.read_bytes()
        for slot in (0, 50, 119):
            for byte in range(size):
                damaged = bytearray(original)
                damaged[slot * size + byte] ^= 1 << (byte % 8)
                path.write_bytes(damaged)
                assert missing(make(tmp_path), torch.arange(120)).tolist() == [slot]
        path.write_bytes(original)
    assert not len(missing(make(tmp_path), torch.arange(120)))


def test_checksums_see_exchanged_values_and_are_never_zero():
    values = logits(1000)
    assert (row_checksums(values) != row_checksums(values.flip(1))).all()
    assert (row_checksums(torch.cat([values, torch.zeros(1, 7).half()])) != 0).all()


@pytest.mark.parametrize("name", ["logits", "checks", "about.json"])
def test_a_truncated_store_is_rebuilt(tmp_path, name, capsys):
    store = make(tmp_path)
    store.write(torch.arange(120), logits(120))
    assert not capsys.readouterr().out
    os.truncate(store.folder / name, 5)
    assert [entry.filled for entry in cache.listed(tmp_path)] == [0.0]
    again = make(tmp_path)
    assert f"{store.folder}: damaged, all of these teacher's logits are computed again" in capsys.readouterr().out
    assert len(missing(again, torch.arange(120))) == 120
    again.write(torch.arange(120), logits(120))
    assert not len(missing(make(tmp_path), torch.arange(120)))


def test_the_least_recently_used_stores_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_opened", NothingOpened())
    size = Store.size(1, 100_000, 7)
    for age, name in enumerate("abc"):
        store = make(tmp_path, name, views=1, rows=100_000)
        store.write(torch.arange(100_000), logits(100_000))
        os.utime(store.folder / "about.json", (1000 - age, 1000 - age))  # c was used longest ago
    kept = make(tmp_path, "b", views=1, rows=100_000)  # used now
    make(tmp_path, "d", max_gb=3.5 * size / 1e9, views=1, rows=100_000)
    assert {store.teacher for store in cache.listed(tmp_path)} == {"a", "b", "d"}
    make(tmp_path, "e", max_gb=2.5 * size / 1e9, views=1, rows=100_000)
    assert {store.teacher for store in cache.listed(tmp_path)} == {"b", "d", "e"}
    assert not len(missing(kept, torch.arange(100_000)))  # a reader keeps what it has opened


def filled(folder: Path, *names: str) -> float:
    """Gigabytes of each of some stores, all full."""
    for name in names:
        store = make(folder, name, views=1, rows=100_000)
        store.write(torch.arange(100_000), logits(100_000))
    return Store.size(1, 100_000, 7) / 1e9


def test_no_store_that_this_process_has_opened_is_deleted(tmp_path):
    """A second teacher's would empty the first one's, and both would be filled again in every run."""
    size = filled(tmp_path, "a", "b")
    make(tmp_path, "c", max_gb=2.5 * size, views=1, rows=100_000)
    assert {store.teacher for store in cache.listed(tmp_path)} == {"a", "b", "c"}


def test_what_cannot_be_held_deletes_nothing(tmp_path, monkeypatch):
    size = filled(tmp_path, "a", "b")
    monkeypatch.setattr(cache, "_opened", NothingOpened())
    with pytest.raises(UserError, match=r"cache.max_gb: is 0.004, a teacher's logits can take 0.0054 GB; set cache.ma"):
        make(tmp_path, "large", max_gb=0.004, views=1, rows=300_000)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "free_gigabytes", lambda folder: 0.001)
        with pytest.raises(UserError, match="has 0.00 GB free, a teacher's logits can take 0.01 GB"):
            make(tmp_path, "large", max_gb=0.006, views=1, rows=300_000)
        assert {store.teacher for store in cache.listed(tmp_path)} == {"a", "b"}
        make(tmp_path, "c", max_gb=2.5 * size, views=1, rows=100_000)  # a store that goes frees enough
    assert len(cache.listed(tmp_path)) == 2


def test_others_stores_make_way_for_those_that_are_wanted(tmp_path, monkeypatch):
    size = filled(tmp_path, "a", "b")
    monkeypatch.setattr(cache, "free_gigabytes", lambda folder: 1.5 * size)
    room = [cache.room_for(tmp_path, count * size, [{"name": "a"}]) / size for count in (1, 3, 4)]
    assert room == pytest.approx([1, 3, 2.5], rel=0.01)


def test_stores_that_another_run_removes_meanwhile_take_no_room(tmp_path, monkeypatch):
    size = filled(tmp_path, "a", "b")
    described = cache.described

    def remove(store):
        parts = described(store)
        shutil.rmtree(store)
        return parts

    monkeypatch.setattr(cache, "free_gigabytes", lambda folder: 1.5 * size)
    monkeypatch.setattr(cache, "described", remove)
    assert cache.room_for(tmp_path, 4 * size, [{"name": "a"}]) == pytest.approx(1.5 * size)


def test_a_disk_that_fills_up_while_logits_are_stored_is_one_message(tmp_path, monkeypatch):
    """Nothing is written to a hole through the map, which would end the process."""
    teacher = cache.CachedTeacher(make(tmp_path), per_view=False, notify=print)
    monkeypatch.setattr(os, "pwrite", lambda file, part, at: len(part) // 2)
    with pytest.raises(UserError, match="cannot be written: No space left on device.* give the same command again"):
        teacher.keep(torch.arange(120), logits(120))
    monkeypatch.undo()
    assert len(missing(make(tmp_path), torch.arange(120))) == 120
    checks = teacher.store.folder / "checks"
    assert checks.stat().st_blocks * 512 >= checks.stat().st_size  # the map that is written to has no holes


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache.dir: cannot keep teachers' logits in .*file: File exists"):
        make(tmp_path / "file")


def test_a_disk_without_space_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "free_gigabytes", lambda folder: 0.25)
    assert make(tmp_path)
    with pytest.raises(UserError, match=r"has 0.25 GB free, a teacher's logits can take 0.54 GB; free some space"):
        make(tmp_path, "large", rows=10_000_000)
    assert {store.teacher for store in cache.listed(tmp_path)} == {"a"}


# ------------------------------------------------------------------------------------------------ reading and filling


def one_step(rows: torch.Tensor) -> Batch:
    """An epoch of one step."""
    return Batch(rows[None], rows[None], rows[None])


def test_only_what_is_missing_is_computed_and_never_one_image_alone(tmp_path):
    store, truth, asked = make(tmp_path, views=1), logits(40), []
    cached = CachedTeacher(store, per_view=False, notify=print)
    cpu = torch.device("cpu")

    def compute(rows):
        def of(positions):
            asked.append(positions.tolist())
            return truth[rows[positions]]

        return of

    for rows, wanted in (
        (torch.arange(10), [list(range(10))]),
        (torch.arange(10), []),
        (torch.tensor([3, 20, 4]), [[1, 2]]),  # with a neighbor
        (torch.tensor([20, 21, 22]), [[1, 2]]),
    ):
        asked.clear()
        cached.begin_epoch(one_step(rows))
        assert torch.equal(cached(0, cpu, compute(rows)), truth[rows])
        assert asked == wanted
    assert cached.hit_rate() == (0 + 10 + 2 + 1) / 26 and cached.hit_rate() == 0.0


def test_nonfinite_logits_are_not_stored(tmp_path):
    cached = CachedTeacher(make(tmp_path, views=1), per_view=False, notify=print)
    bad = logits(2)
    bad[1, 3] = torch.inf
    rows = torch.tensor([1, 2])
    cached.begin_epoch(one_step(rows))
    assert torch.equal(cached(0, torch.device("cpu"), lambda positions: bad[positions]), bad)
    assert missing(cached.store, rows).tolist() == [2]


def test_fixed_views_depend_on_the_row_not_on_seed_and_epoch():
    rows = torch.arange(500)
    seen = [
        draw_views(seed, epoch, rows, Augmentation(4, True), fixed=4) for seed in range(3) for epoch in range(8)
    ]
    numbers = torch.stack([view.numbers for view in seen])
    assert numbers.min() == 0 and numbers.max() == 3
    assert torch.bincount(numbers.flatten()).min() > 0.2 * numbers.numel()
    for view in seen:
        assert torch.equal(view.ids, fixed_view_ids(rows, view.numbers, crop_padding=4, flip=True))
    distinct = {len(set(column.tolist())) for column in torch.stack([view.ids for view in seen]).T}
    assert max(distinct) <= 4
    bank = torch.stack([fixed_view_ids(rows, torch.full((500,), n), crop_padding=4, flip=True) for n in range(4)])
    assert len(bank.unique()) > 0.95 * Augmentation(4, True).num_views  # they are spread over all views


@pytest.mark.parametrize(("others", "mode"), [(["lazy"], "lazy"), (["clean", "off"], "off"), (["fixed"], "lazy")])
def test_processes_on_machines_with_unlike_room_take_one_mode(others, mode, monkeypatch):
    """Else some of them would wait for the others in filling a cache that these do not fill."""
    monkeypatch.setattr(teacher_logits, "gather_object", lambda own: [*own, *((other, "") for other in others)])
    assert teacher_logits.agreed(lambda: "lazy") == mode


def test_a_mistake_of_one_process_ends_all(monkeypatch):
    monkeypatch.setattr(teacher_logits, "gather_object", lambda own: [*own, ("off", "cache.mode: no room")])
    with pytest.raises(UserError, match="cache.mode: no room"):
        teacher_logits.agreed(lambda: "lazy")


# ------------------------------------------------------------------------------------------------------ in training


@pytest.fixture(scope="module")
def home(tmp_path_factory, digits_teachers) -> Path:
    """Two small teachers of different families in runs t/."""
    home = tmp_path_factory.mktemp("cache")
    for folder in digits_teachers:
        shutil.copytree(folder, home / "t" / folder.name)
    return home


def words(home: Path, name: str, *more: str, folder: str = "data") -> list[str]:
    """A run with one teacher that sees the student's view and one that sees the clean one."""
    first, second = sorted((home / "t").iterdir())
    return [
        f"--output_dir={home / 'runs'}", f"--cache.dir={home / folder}", f"--name={name}",
        "--model={name: cifar_resnet8}",
        f"--teachers=[{{weights: {first}}}, {{weights: {second}, view: clean}}]", "--kd.type=dynamic", "--no-wandb",
        "--data.train_size=300", "--training.max_epochs=3", "--training.compare_with_baseline=false",
        "--evaluation.report=false", "--fresh",
        "--training.log_every=1", *more,
    ]  # fmt: skip


def train(home: Path, name: str, *more: str, folder: str = "data") -> tuple[dict, list[dict]]:
    """The final student's weights, and the epochs' rows."""
    train_kd.main(words(home, name, *more, folder=folder))
    return result(home, name)


def result(home: Path, name: str) -> tuple[dict, list[dict]]:
    [run] = (home / "runs").glob(f"{name}-????????")
    weights = models.load_export(run / "checkpoints" / "latest" / "student").model.state_dict()
    return weights, [row for row in read_metrics(run / "metrics.jsonl") if row.get("epoch", 0) > 0]


def losses(home: Path, name: str) -> list[float]:
    """Of every step."""
    [run] = (home / "runs").glob(f"{name}-????????")
    rows = read_metrics(run / "metrics.jsonl")
    return [row["train_step/loss_total"] for row in rows if "train_step/step" in row]


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def hits(rows: list[dict]) -> list[float]:
    return [row["perf/teacher_cache_hit_rate"] for row in rows]


@pytest.fixture(scope="module")
def online(home) -> dict:
    """The student of teachers that run in every step."""
    weights, rows = train(home, "online", "--cache.mode=off")
    assert hits(rows) == [0.0, 0.0, 0.0] and not (home / "data" / "logits").exists()
    return weights


@pytest.fixture(scope="module")
def warm(home, online) -> Path:
    """A cache folder that a run has filled, and proof that this run was the online one, bit by bit."""
    weights, rows = train(home, "cold", folder="warm")
    assert same(weights, online)
    assert 0.5 <= hits(rows)[0] < 1  # the clean teacher's logits are all there before the first step
    return home / "warm"


def test_a_warm_cache_gives_the_same_student_and_runs_no_teacher(home, online, warm, monkeypatch):
    monkeypatch.setattr(TeacherLogits, "_compute", lambda *a, **k: pytest.fail("a teacher was run"))
    weights, rows = train(home, "warm", folder="warm")
    assert same(weights, online) and hits(rows) == [1.0, 1.0, 1.0]
    assert losses(home, "warm") == losses(home, "cold") == losses(home, "online") and len(losses(home, "warm")) >= 25


def test_no_teacher_is_built_when_all_logits_are_cached(home, online, warm, monkeypatch):
    original = models.load_export

    def no_teacher(folder):
        assert (home / "t") not in Path(folder).parents, f"{folder} was loaded"
        return original(folder)

    monkeypatch.setattr(models, "load_export", no_teacher)
    weights, rows = train(home, "unloaded", folder="warm")
    assert same(weights, online) and hits(rows) == [1.0, 1.0, 1.0]
    [run] = (home / "runs").glob("unloaded-????????")
    assert [teacher["parameters"] > 70_000 for teacher in read_json(run / "summary.json")["teachers"]] == [True, True]
    shutil.copytree(warm, home / "known")
    with pytest.raises(AssertionError, match="was loaded"):  # other views are not there
        train(home, "another-crop", "--data.crop_padding=1", folder="known")


def test_notes_about_teachers_may_be_damaged(home, online, warm):
    shutil.copytree(warm, home / "notes")
    first, second = sorted((home / "notes" / "teachers").glob("*.json"))
    first.write_text("{")
    second.write_text('{"architecture": 3}')
    weights, _ = train(home, "notes", folder="notes")
    assert same(weights, online)
    assert all(read_json(note)["num_classes"] == 10 for note in (first, second))


def test_a_damaged_teacher_is_found_though_an_undamaged_one_is_known(home, warm, tmp_path):
    [run] = (home / "t").glob("cifar_resnet8-*")
    shutil.copytree(run, tmp_path / "damaged")
    os.truncate(tmp_path / "damaged" / "student" / "model.safetensors", 1000)
    shutil.copytree(warm, home / "damaged-teacher")
    with pytest.raises(UserError, match=r"teachers\[0\].weights: .*damaged"):
        train(home, "damaged", f"--teachers=[{{weights: {tmp_path / 'damaged'}}}]", folder="damaged-teacher")


def test_damaged_and_half_filled_stores_are_repaired_with_a_notice(home, online, warm, capsys):
    shutil.copytree(warm, home / "damaged")
    for number, path in enumerate(sorted((home / "damaged" / "logits").glob("*/logits"))):
        data = bytearray(path.read_bytes())
        data[number::997] = bytes(len(data[number::997]))
        path.write_bytes(data)
    weights, rows = train(home, "damaged", folder="damaged")
    assert same(weights, online) and min(hits(rows)) < 1
    text = capsys.readouterr().out
    told = set(re.findall(r"/logits/(\w+): damaged, \d+ or more teachers' logits are computed again", text))
    assert told == {store.key for store in cache.listed(home / "damaged" / "logits")} and len(told) == 3
    train(home, "mended", folder="damaged")
    assert "computed again" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "shape", [3, {}, {"views": "2", "rows": 9, "classes": 3}, {"views": -2, "rows": -9, "classes": 3}]
)
def test_a_store_with_invalid_metadata_is_listed_as_empty(tmp_path, shape):
    shapes = {"views": 2, "rows": 9, "classes": 3}
    store = open_store(tmp_path, {}, **shapes, about={"teacher": "a"}, max_gb=1.0)
    store.write(torch.arange(18), torch.ones(18, 3).half())
    (store.folder / "about.json").write_text(json.dumps({"teacher": "a", "shape": shape}))
    assert [found.filled for found in cache.listed(tmp_path)] == [0.0]


def test_an_interrupted_fill_continues_where_it_stopped(home, online, monkeypatch):
    CUT = 30
    original, batches = TeacherLogits._compute, []

    class Cut(Exception):
        pass

    def counted(self, index, images, *rest, **options):
        batches.append(len(images))
        if len(batches) == CUT:
            raise Cut
        return original(self, index, images, *rest, **options)

    monkeypatch.setattr(TeacherLogits, "_compute", counted)
    with pytest.raises(Cut):
        train(home, "cut", "--cache.mode=fixed", "--cache.views=2", folder="cut")
    [run] = (home / "runs").glob("cut-*")
    shutil.rmtree(run)
    train(home, "cut", "--cache.mode=fixed", "--cache.views=2", folder="cut")
    # two views of 300 images and the clean ones of 229 for one teacher, the clean ones of 529 for the other
    computed = sum(batches) - batches[CUT - 1]
    assert computed == 2 * 300 + 229 + 529


def test_fixed_views_train_alike_cold_and_warm_but_not_as_all_views(home, online):
    first, _ = train(home, "fixed-cold", "--cache.mode=fixed", "--cache.views=3", folder="fixed")
    second, rows = train(home, "fixed-warm", "--cache.mode=fixed", "--cache.views=3", folder="fixed")
    assert same(first, second) and hits(rows) == [1.0, 1.0, 1.0] and not same(first, online)


COUNTED = """
import sys
import train_kd
from kd_core.teachers.logits import TeacherLogits

original = TeacherLogits._compute

def counted(self, index, images, *rest, **options):
    with open(sys.argv[1], "a") as file:
        file.write(f"{len(images)}\\n")
    return original(self, index, images, *rest, **options)

TeacherLogits._compute = counted
train_kd.main(sys.argv[2:])
"""


@pytest.mark.parametrize("mode", [[], ["--cache.mode=fixed", "--cache.views=2"]], ids=["lazy", "fixed"])
def test_two_runs_at_once_share_a_cold_cache(home, online, mode, tmp_path):
    """What is filled before training is filled once; of what is filled meanwhile, some may be computed twice."""
    names, count = [f"{name}-{len(mode)}" for name in ("one", "two")], tmp_path / "count"
    script = tmp_path / "counted.py"
    script.write_text(COUNTED)
    running = [
        WarmProcess(
            [str(script), str(count), *words(home, name, *mode, folder=f"both-{len(mode)}")]
        )
        for name in names
    ]  # fmt: skip
    for process in running:
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
    (first, _), (second, _) = (result(home, name) for name in names)
    assert same(first, second)
    computed = sum(map(int, count.read_text().split()))
    clean = 229 + 529  # the first teacher's for validation, the second's for validation and training
    assert computed == clean + 2 * 300 if mode else computed < clean + 2 * 3 * 300


def test_auto_prints_the_size_of_lazy_where_it_does_not_fit(home, capsys):
    train(home, "tight", "--cache.max_gb=0.00005", "--training.max_epochs=1", folder="tight")
    text = capsys.readouterr().out
    words = "teachers run in every step: lazy would take [0-9.]+ GB for the teachers' logits, there is room for 5e-05 "
    assert re.search(rf"{words}\(cache.max_gb is 5e-05\); set cache.max_gb=1; fixed with 8 views [0-9.e-]+ GB", text)


@pytest.mark.parametrize("mode", ["fixed", "lazy", "clean"])
def test_a_named_mode_that_does_not_fit_is_refused_before_anything_is_trained(home, mode, monkeypatch):
    """Not filled above the limit, which would empty the cache for every other run."""
    monkeypatch.setattr(train_kd, "run", lambda *a, **k: pytest.fail("training began"))
    words = rf"cache.mode: {mode} would take [0-9.e-]+ GB .* for 7e-06 \(cache.max_gb is 7e-06\); set cache.max_gb=1"
    with pytest.raises(UserError, match=words):
        train(home, f"tight-{mode}", f"--cache.mode={mode}", "--cache.max_gb=0.000007", folder=f"tight-{mode}")
    assert not cache.listed(home / f"tight-{mode}" / "logits")


def test_of_teachers_yet_to_be_trained_the_gigabytes_are_known(home, monkeypatch):
    """Whatever the disk has free: what is stored of them is not known before."""
    monkeypatch.setattr(train_kd, "run", lambda *a, **k: pytest.fail("training began"))
    monkeypatch.setattr(cache, "free_gigabytes", lambda folder: 1e-9)
    recipe = ROOT / "configs" / "teachers" / "digits.yaml"
    more = [f"--teachers=[{{model: cifar_resnet8, train: {recipe}}}]", "--kd.type=average", "--cache.mode=fixed"]
    with pytest.raises(UserError, match="cache.mode: fixed would take .*set cache.max_gb=1"):
        train(home, "untrained", *more, "--cache.max_gb=0.000007")
    with pytest.raises(pytest.fail.Exception, match="training began"):
        train(home, "untrained", *more)


def test_auto_with_clean_views_that_do_not_fit_runs_teachers_in_every_step(home, online, capsys):
    weights, rows = train(home, "tight-auto", "--cache.max_gb=0.000007", folder="tight-auto")
    text = capsys.readouterr().out
    assert "every step: lazy would take" in text and "every step: clean would take" in text
    assert same(weights, online) and hits(rows) == [0.0, 0.0, 0.0]


def test_more_than_the_cache_may_hold_is_computed_without_it(home, online):
    weights, _ = train(home, "tiny", "--cache.max_gb=0.000001", folder="tiny")
    assert same(weights, online) and not cache.listed(home / "tiny" / "logits")


def test_auto_counts_what_its_own_stores_take_already(home, online, warm, monkeypatch):
    """The disk is all but full, of what an earlier run has stored."""
    monkeypatch.setattr(cache, "free_gigabytes", lambda folder: 1e-5)
    weights, rows = train(home, "full", folder="warm")
    assert same(weights, online) and hits(rows) == [1.0, 1.0, 1.0]
    _, rows = train(home, "full-and-empty", folder="data")
    assert hits(rows)[0] < 1


def test_only_fixed_views_make_another_run():
    def digest(*more: str) -> str:
        config = command_line.parse(["--config", "configs/quickstart.yaml", *more])[1].config
        return configuration.digest(config, "data")

    assert digest() == digest("--cache.mode=off") == digest("--cache.max_gb=1") == digest("--cache.mode=lazy")
    assert len({digest(), digest("--cache.mode=fixed"), digest("--cache.mode=fixed", "--cache.views=3")}) == 3


def test_the_command_lists_and_erases(warm, tmp_path, capsys):
    shutil.copytree(warm, tmp_path / "copy")
    cache.main(["--dir", str(tmp_path / "copy")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "cifar_resnet8, 25 views" in "\n".join(lines) and "100.0% filled" not in lines[-1]
    with pytest.raises(UserError, match="--erase: no such store: nothing"):
        cache.main(["--dir", str(tmp_path / "copy"), "--erase", "nothing"])
    cache.main(["--dir", str(tmp_path / "copy"), "--erase", lines[0].split()[0]])
    cache.main(["--dir", str(tmp_path / "copy"), "--erase", "all"])
    assert not list((tmp_path / "copy" / "logits").glob("*/about.json"))
    assert json.loads(next(warm.glob("logits/*/about.json")).read_text())["shape"]
