"""Warm starts: what is read, what is taught, what is kept, and when a start takes it over."""

from __future__ import annotations

import numpy as np
import pytest
from recorded_folders import write_folder
from typer.testing import CliRunner

from bandit.errors import InvalidInput
from bandit.posterior import LATENCY, QUALITY, TOKENS
from bandit.types import Prompt
from evaluation.experience import read_recording
from serving.cli import main
from serving.pools import start_pool
from serving.settings import Settings
from serving.warming import fitted_features, warm
from serving.warmstart import (
    FILE_NAME,
    WarmStart,
    WarmStartUnusable,
    disagreement,
    read_warm_starts,
    write_warm_starts,
)

PRICE = {"input_per_million": 1.0, "output_per_million": 10.0}


def settings_of(tmp_path, **pool):
    model = {"endpoint": "http://127.0.0.1:9/v1", "price": PRICE}
    return Settings.parse(
        {
            "server": {"data_dir": str(tmp_path / "data")},
            "models": [{"name": "one", **model}, {"name": "two", "upstream_model": "two-v2", **model}],
            "pools": [{"name": "auto", "models": ["one", "two"], **pool}],
        }
    )


def write_config(tmp_path, **pool):
    import yaml

    data = settings_of(tmp_path, **pool).model_dump(mode="json", exclude_none=True, exclude_unset=True)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(data))
    return str(tmp_path / "c.yaml")


def run(*arguments):
    return CliRunner().invoke(main, ["warmstart", *map(str, arguments)])


def names(settings):
    return {model.name: (model.name, model.upstream_model) for model in settings.models}


def warmed(settings, recording, clusters=0, effective_samples=500.0):
    pool = settings.pools[0]
    features = fitted_features(pool, recording.prompts, clusters)
    contexts = [features.extract(prompt) for prompt in recording.prompts]
    seen = recording.experience
    return warm(pool, settings, features, contexts, seen, source="x", effective_samples=effective_samples)


# --- a folder


def test_a_folders_warm_split_is_read_by_the_names_models_go_by(tmp_path):
    folder = write_folder(tmp_path / "set", {"one": 1.0, "two-v2": 0.25, "three": 0.5})
    recording = read_recording(folder, names(settings_of(tmp_path)))
    assert len(recording.prompts) == 15
    assert {prompt.category for prompt in recording.prompts} == {"math", "code", "law"}
    assert {name: seen.quality.tolist() for name, seen in recording.experience.items()} == {
        "one": [1.0] * 15,
        "two": [0.25] * 15,
    }


def test_a_folder_without_that_split_is_read_whole_and_of_several_runs_the_last(tmp_path):
    quality = {"one": {"r1": 0.0, "r2": 1.0}}
    folder = write_folder(tmp_path / "set", quality, runs=("r1", "r2"), warm=False)
    recording = read_recording(folder, names(settings_of(tmp_path)))
    assert recording.experience["one"].quality.tolist() == [1.0] * 30
    assert read_recording(folder, {"one": ["one"]}, run="r1").experience["one"].quality.sum() == 0.0
    assert len(read_recording(folder, {"one": ["one"]}, split="test").prompts) == 30


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"names": {"four": ["four"]}}, "none of four is recorded"),
        ({"run": "r9"}, "r9"),
        ({"split": "train"}, "train"),
        ({"folder": "nowhere"}, "prompts.parquet"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, options, said):
    folder = write_folder(tmp_path / "set", {"one": 1.0})
    wanted = options.pop("names", {"one": ["one"]})
    with pytest.raises(InvalidInput, match=said):
        read_recording(tmp_path / options.pop("folder", folder.name), wanted, **options)


# --- what is taught


def test_a_pool_starts_with_the_means_that_were_recorded(tmp_path):
    """15 warm prompts, quality 1 against 0.25: with a prior of one observation at 0.5, (0.5 + 15 q) / 16."""
    settings = settings_of(tmp_path)
    recording = read_recording(write_folder(tmp_path / "set", {"one": 1.0, "two-v2": 0.25}), names(settings))
    heads = warmed(settings, recording).pool.heads
    np.testing.assert_allclose(heads.averages(QUALITY, 0), [15.5 / 16, 4.25 / 16])
    for head in (QUALITY, TOKENS, LATENCY):
        np.testing.assert_allclose(heads.counts(head, 0), [15.0, 15.0])


def test_effective_samples_bound_what_a_start_counts_for(tmp_path):
    settings = settings_of(tmp_path)
    recording = read_recording(write_folder(tmp_path / "set", {"one": 1.0, "two": 0.25}), names(settings))
    heads = warmed(settings, recording, effective_samples=5.0).pool.heads
    np.testing.assert_allclose(heads.counts(QUALITY, 0), [5.0, 5.0])
    np.testing.assert_allclose(heads.averages(QUALITY, 0), [5.5 / 6, 1.75 / 6])


def test_features_are_fitted_but_for_what_the_settings_fix(tmp_path):
    prompts = [Prompt("what is two and two", category="math"), Prompt("def f(): pass", category="code")]
    settings = settings_of(tmp_path)
    assert fitted_features(settings.pools[0], prompts, 0).categories == ("code", "math")
    assert fitted_features(settings.pools[0], prompts, 2).clusters.shape[0] == 2
    fixed = settings_of(tmp_path, features={"categories": ["law", "math"], "text": "none", "vector": 2}).pools[0]
    features = fitted_features(fixed, prompts, 0)
    assert (features.categories, features.text, features.vector) == (("law", "math"), None, 2)
    unlabelled = [Prompt(prompt.text) for prompt in prompts]
    assert fitted_features(settings.pools[0], unlabelled, 0).categories == ()
    with pytest.raises(InvalidInput, match="clusters"):
        fitted_features(settings.pools[0], prompts, 3)


# --- the file


def start_of(tmp_path, settings=None, clusters=0):
    settings = settings or settings_of(tmp_path)
    recording = read_recording(write_folder(tmp_path / "set", {"one": 0.0, "two": 1.0}), names(settings))
    return warmed(settings, recording, clusters).to_start(1000.0)


def test_what_is_written_is_read_again(tmp_path):
    start = start_of(tmp_path, clusters=3)
    path = write_warm_starts(tmp_path / "data", {"auto": start, "other": start})
    assert [p.name for p in path.parent.iterdir()] == [FILE_NAME]
    again = read_warm_starts(tmp_path / "data")
    assert list(again) == ["auto", "other"]
    assert (again["auto"].source, again["auto"].made_at, again["auto"].counts) == ("x", 1000.0, {"one": 15, "two": 15})
    settings = settings_of(tmp_path)
    pool = start_pool(settings.pools[0], settings, again["auto"])
    assert pool.features.clusters.shape[0] == 3
    np.testing.assert_allclose(pool.heads.averages(QUALITY, 0), [0.5 / 16, 15.5 / 16])
    assert read_warm_starts(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04nonsense", "half", "format", "form"])
def test_a_damaged_file_is_refused_in_words(tmp_path, damage):
    """Not ignored: a service that has learned with the file's features would lose that without it."""
    from bandit.snapshot import dumps

    path = write_warm_starts(tmp_path, {"auto": start_of(tmp_path)})
    whole = path.read_bytes()
    texts = {
        "half": whole[: len(whole) // 2],
        "format": dumps({"format": 99}),
        "form": dumps({"format": 1, "pools": {"a": {}}}),
    }
    path.write_bytes(texts[damage] if isinstance(damage, str) else damage)
    with pytest.raises(WarmStartUnusable, match="pointsman warmstart"):
        read_warm_starts(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_warm_starts(tmp_path, {"auto": start_of(tmp_path)})
    whole = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_warm_starts(tmp_path, {})
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [FILE_NAME]


@pytest.mark.parametrize(
    ("features", "differs"),
    [({}, None), ({"text": "none"}, "text"), ({"vector": 1}, "vector"), ({"categories": ["a"]}, "categories")],
)
def test_settings_that_differ_from_the_start_win_with_a_warning(tmp_path, caplog, features, differs):
    start = start_of(tmp_path)
    settings = settings_of(tmp_path, features=features)
    said = disagreement(settings.pools[0], start)
    pool = start_pool(settings.pools[0], settings, start)
    cold = pool.heads.counts(QUALITY, 0).sum() == 0
    if differs is None:
        assert (said, cold, "starts cold" in caplog.text) == (None, False, False)
    else:
        assert differs in said
        assert cold
        assert "starts cold" in caplog.text


def test_models_that_joined_or_left_since_do_not_spoil_a_start(tmp_path):
    start = start_of(tmp_path)
    data = {"endpoint": "http://127.0.0.1:9/v1"}
    settings = Settings.parse(
        {
            "models": [{"name": "new", **data}, {"name": "two", **data}],
            "pools": [{"name": "auto", "models": ["new", "two"]}],
        }
    )
    pool = start_pool(settings.pools[0], settings, start)
    np.testing.assert_allclose(pool.heads.counts(QUALITY, 0), [0.0, 15.0])
    assert pool.newcomers.names == {"new"}
    strangers = WarmStart(start.features, {**start.state, "arms": ["x", "y"]}, "x", 1.0, 5.0, {})
    assert start_pool(settings.pools[0], settings, strangers).heads.counts(QUALITY, 0).sum() == 0


# --- the command


def test_the_command_prints_what_it_found_and_writes_it(tmp_path):
    folder = write_folder(tmp_path / "set", {"one": 0.5})
    config = write_config(tmp_path, budget={"usd_per_request": 0.0005})
    result = run("-c", config, "--from", folder, "--effective-samples", 100, "--clusters", 3)
    assert result.exit_code == 0, result.output
    for part in (
        "0.5000",
        "0.001",
        "code, law, math; 3 clusters",
        "prior stays: two",
        "λ starts at",
        "after 100 calls",
    ):
        assert part in result.output
    (start,) = read_warm_starts(tmp_path / "data").values()
    assert (start.effective_samples, start.counts) == (100.0, {"one": 15})


def test_pools_that_were_not_made_anew_keep_their_start(tmp_path):
    write_warm_starts(tmp_path / "data", {"other": start_of(tmp_path)})
    assert run("-c", write_config(tmp_path), "--from", tmp_path / "set", "--pool", "auto").exit_code == 0
    assert set(read_warm_starts(tmp_path / "data")) == {"auto", "other"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "set", "--pool", "atuo"], "no pool is called 'atuo'; there are auto"),
        (["--from", "set", "--run", "r9"], "r9"),
        (["--from", "set", "--clusters", "40"], "15 different texts cannot make 40"),
        (["--from", "strangers"], "none of one, two is recorded"),
        (["--from", "empty"], "prompts.parquet"),
        (["--from", "nothing"], "there is no file"),
        (["--from", "text"], "is not a log of this service"),
        (["--from", "text", "--clusters", "3"], "belong to a folder"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_written(tmp_path, arguments, said):
    write_folder(tmp_path / "set", {"one": 0.5})
    write_folder(tmp_path / "strangers", {"four": 0.5})
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no database")
    result = run("-c", write_config(tmp_path), "--from", tmp_path / arguments[1], *arguments[2:])
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "data").exists()


def test_a_damaged_start_is_refused_by_the_command_too(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FILE_NAME).write_bytes(b"?")
    result = run("-c", write_config(tmp_path), "--from", write_folder(tmp_path / "set", {"one": 0.5}))
    assert (result.exit_code, "cannot use" in result.output) == (2, True)


def test_a_start_from_embeddings_is_taken_over_whole(tmp_path):
    """With the extra: texts alike meet in a cluster, before and after the trip through the file."""
    pytest.importorskip("wordllama")
    settings = settings_of(tmp_path, features={"text": "embeddings"})
    start = start_of(tmp_path, settings, clusters=3)
    write_warm_starts(tmp_path / "data", {"auto": start})
    features = start_pool(settings.pools[0], settings, read_warm_starts(tmp_path / "data")["auto"]).features
    assert "wordllama" in features.version
    one, two, other = (features.extract(Prompt(t)).x for t in ("what is 3 times 7", "what is 9 times 7", "def f(x):"))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
