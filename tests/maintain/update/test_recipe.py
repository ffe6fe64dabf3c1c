"""Recipes: read strictly, written so that they read back equal, their paths relative to the file."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.config import EmbedParams, IndexParams, NearDuplicatesParams, TagParams, dump_toml, parse_toml
from retrodb.errors import ConfigError, MissingStep
from retrodb.maintain.update.recipe import (
    ExportRecipe,
    FilterRecipe,
    HardwareRecipe,
    HooksRecipe,
    MetricsRecipe,
    Recipe,
    SourceRecipe,
    TableRecipe,
    TestsetRecipe,
    dump_recipe,
    load_recipe,
    parse_recipe,
)
from retrodb.store.storage import LocalStorage

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "recipe.toml"
names = st.text("abc .-\"'é[]#=\n", min_size=1, max_size=6)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
rules = st.builds(FilterRecipe, where=words, reason=st.none() | words)
sources = st.builds(
    SourceRecipe,
    source=st.just(""),
    inputs=st.lists(words, min_size=1, max_size=2).map(tuple),
    text_field=st.none() | words,
    metadata_fields=st.none() | st.lists(words, max_size=2).map(tuple),
    mirror=st.booleans(),
    holdout=st.floats(0, 0.5),
)
recipes = st.builds(
    Recipe,
    sources=st.dictionaries(names, sources, max_size=2).map(
        lambda all: {name: SourceRecipe(**{**vars(each), "source": name}) for name, each in all.items()}
    ),
    testsets=st.dictionaries(names, st.builds(TestsetRecipe, files=st.just(("a", "b")), rule=words), max_size=2),
    near_duplicates=st.none() | st.builds(NearDuplicatesParams, jaccard=st.floats(0.1, 1)),
    taggers=st.dictionaries(names, st.builds(TagParams, regex=words), max_size=2),
    filters=st.lists(rules, max_size=3).map(tuple),
    embed=st.builds(HardwareRecipe, device=words, batch_tokens=st.none() | st.integers(1, 1 << 40)),
    spaces=st.dictionaries(names, st.builds(EmbedParams, encoder=words), max_size=2),
    index=st.builds(IndexParams, factory=words, seed=st.integers(0, 9)),
    neighbours=st.dictionaries(names, st.builds(TableRecipe, k=st.integers(1, 9), space=st.none() | words), max_size=2),
    exports=st.lists(
        st.builds(
            ExportRecipe,
            to=words,
            out=words,
            table=st.none() | words | st.dictionaries(words, words, max_size=2),
            seq_length=st.none() | st.integers(1, 1 << 20),
        ),
        max_size=2,
    ).map(tuple),
    hooks=st.builds(HooksRecipe, on_success=st.none() | words.map(lambda word: shlex.join(["run", word]))),
    metrics=st.builds(MetricsRecipe, file=st.none() | words),
)


@settings(max_examples=150, deadline=None)
@given(recipe=recipes)
def test_a_recipe_is_equal_after_writing_and_reading(recipe: Recipe) -> None:
    assert parse_recipe(dump_recipe(recipe), where="recipe.toml") == recipe


def test_lists_of_tables_and_unusual_keys_are_written_and_read() -> None:
    values = {"a b": 1, "rows": [{"x": [1, 2]}, {"x": [], "in": {"y": "\n"}}], "é": {"q": {"z": True}}, "none": []}
    assert parse_toml(dump_toml(values), where="") == values


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        ('[source.a]\ninputs = ["x"]', "recipe.toml", "Did you mean 'sources'?"),
        ('[sources.a]\nimputs = ["x"]', "[sources.a]", "Did you mean 'inputs'?"),
        ('[sources.a]\ninputs = ["x"]\ntext_feild = "t"', "[sources.a]", "Did you mean 'text_field'?"),
        (
            '[sources.a]\ninputs = ["x"]\nsource = "b"',
            "[sources.a]",
            "The name of the table is the name of the source.",
        ),
        ("[sources.a]\nmirror = true", "[sources.a]", "'inputs' is missing"),
        ("[testsets.a]\nngram = 13", "[testsets.a]", "'files' is missing"),
        ("sources = 3", "recipe.toml", "Write [sources.NAME]."),
        ("[sources]\na = 3", "[sources.a]", "must be a table"),
        ('metrics = "x.prom"', "[metrics]", "Possible keys: file."),
        ('[[filters]]\nwhere = "x"\n[[filters]]\nreson = "y"', "[[filters]] number 2", "Did you mean 'reason'?"),
        ('[filters]\nwhere = "x"', "recipe.toml", "Write [[filters]]."),
        ("[neighbours.t]\nk = true", "[neighbours.t]", "'k' must be an integer, not True"),
        ("[testsets.t]\nfiles = ['a', 1]", "[testsets.t]", "every element of 'files' must be a string"),
        ("[[exports]]\nout = 'x'", "[[exports]] number 1", "'to' is missing"),
        ("[index]\ntrain_sample = 'all'", "[index]", "'train_sample' must be an integer, not 'all'"),
        ('[hooks]\non_success = "say \'hello"', "[hooks]", "No closing quotation"),
        ("[hooks]\non_failure = ' '", "[hooks]", "an empty command line"),
        ("[index", "recipe.toml", "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_remedy(text: str, place: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text, where="recipe.toml")
    assert place in str(caught.value)
    assert remedy in str(caught.value)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "my [data]"
    folder.mkdir()
    (folder / "recipe.toml").write_text(
        '[sources.a]\ninputs = ["dump/*.jsonl", "/abs/x"]\n[testsets.t]\nfiles = ["../t.jsonl"]\n'
        '[taggers.w]\nwordlist = "w.txt"\n[taggers.m]\nhf_model = "org/name"\n[[exports]]\nto = "parquet"\nout = "out"\n'
        "[hooks]\non_success = \"./tell 'two words'\"\non_failure = \"mail -s x\"\n[metrics]\nfile = 'm.prom'\n"
    )
    (folder / "bert").mkdir()
    with (folder / "recipe.toml").open("a") as file:
        file.write('[spaces.a]\nencoder = "bert"\n[spaces.b]\nencoder = "hashing:8"\n')
    recipe = load_recipe(LocalStorage(tmp_path), folder / "recipe.toml")
    assert [space.encoder for space in recipe.spaces.values()] == [f"{folder}/bert", "hashing:8"]
    assert recipe.sources["a"].inputs == (f"{tmp_path}/my [[]data]/dump/*.jsonl", "/abs/x")
    assert recipe.testsets["t"].files == (f"{tmp_path}/t.jsonl",)
    assert recipe.taggers["w"].wordlist == f"{folder}/w.txt"
    assert recipe.taggers["m"].hf_model == "org/name"
    assert recipe.exports[0].out == f"{folder}/out"
    assert recipe.hooks == HooksRecipe(f"'{folder}/tell' 'two words'", "mail -s x")
    assert recipe.metrics.file == f"{folder}/m.prom"


def test_a_database_without_a_recipe_says_where_one_may_be(tmp_path: Path) -> None:
    with pytest.raises(MissingStep, match="--config"):
        load_recipe(LocalStorage(tmp_path))
    with pytest.raises(ConfigError, match="No such file"):
        load_recipe(LocalStorage(tmp_path), tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_recipe(LocalStorage(tmp_path), tmp_path / "latin.toml")


def test_the_example_is_a_recipe() -> None:
    recipe = parse_recipe(EXAMPLE.read_text(), where=str(EXAMPLE))
    assert all(getattr(recipe, name) != getattr(Recipe(), name) for name in vars(recipe))
