import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raydino.config import Config, ConfigError, Length, in_steps, read_yaml, read_yaml_file
from raydino.methods.config import DINOConfig, DINOv2Config
from raydino.recipe import Recipe


class Inner(Config):
    low: int = 1
    high: int = 2
    rate: float = 0.5


class Outer(Config):
    inner: Inner = Inner()
    parts: dict[str, Inner] = {"a": Inner()}
    length: Length = 0.5
    name: str = "x"


def test_override__dotted_and_nested_spellings_agree():
    dotted = Outer().override({"inner.low": 5, "parts.a.rate": 0.25})
    nested = Outer().override({"inner": {"low": 5}, "parts": {"a": {"rate": 0.25}}})
    assert dotted == nested
    assert (dotted.inner.low, dotted.inner.high, dotted.parts["a"].rate, dotted.parts["a"].low) == (5, 2, 0.25, 1)


def test_override__leaves_the_original_alone():
    before = Outer()
    before.override({"inner.low": 9, "parts.a.low": 9})
    assert before == Outer()


def test_override__keeps_the_class_of_a_sub_config():
    recipe = Recipe(method=DINOConfig()).override({"method.student_temperature": 0.2})
    assert type(recipe.method) is DINOConfig


def test_override__applies_dependent_fields_together():
    # Alone, either change breaks "global_batch is a multiple of lanes".
    changed = Recipe().override({"global_batch": 9, "lanes": 3})
    assert (changed.global_batch, changed.lanes) == (9, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inner.lwo": 1}, ["inner.lwo", "low"]),
        ({"nmae": "y"}, ["nmae", "name"]),
        ({"inner.rate": float("nan")}, ["inner.rate", "nan"]),
        ({"inner.low": "many"}, ["inner.low", "many"]),
        ({"_target_": "os.system"}, ["_target_"]),
    ],
)
def test_override__error_names_field_and_value(changes, words):
    with pytest.raises(ConfigError) as error:
        Outer().override(changes)
    assert all(word in str(error.value) for word in words)


def test_config__is_frozen():
    with pytest.raises(ValidationError):
        Outer().name = "y"


def test_fingerprint__sees_the_fields_of_a_subclass():
    one, two = (Recipe(method=DINOv2Config(koleo_weight=w)) for w in (0.1, 0.2))
    assert one.fingerprint() != two.fingerprint()
    assert one.fingerprint() == Recipe(method=DINOv2Config(koleo_weight=0.1)).fingerprint()


def test_fingerprint__is_that_of_sorted_json():
    import hashlib

    text = json.dumps({"high": 2, "low": 1, "rate": 0.5})
    assert Inner().fingerprint() == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert Inner(low=7).fingerprint(exclude=frozenset({"low"})) == Inner().fingerprint(exclude=frozenset({"low"}))


@given(
    steps=st.integers(8, 10**6),
    rate=st.floats(1e-8, 1.0),
    length=st.one_of(st.integers(0, 10**6), st.floats(0, 1)),
    name=st.text(max_size=20),
)
def test_to_yaml__reads_back_equal(steps, rate, length, name):
    config = Outer(inner=Inner(low=steps, rate=rate), length=length, name=name)
    back = Outer().from_yaml(config.to_yaml())
    assert back == config
    assert type(back.length) is type(config.length)


def test_from_yaml__recipe_reads_back_equal():
    recipe = Recipe(name="no", method=DINOv2Config(koleo_weight=0.3), steps=77)
    assert Recipe().from_yaml(recipe.to_yaml()).dump() == recipe.dump()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1e-3", 1e-3),
        ("a: 1E4", 1e4),
        ("a: .5", 0.5),
        ("a: 5.", 5.0),
        ("a: 3", 3),
        ("a: on", "on"),
        ("a: no", "no"),
        ("a: true", True),
        ("a: null", None),
        ("\ufeffa: 1", 1),
        ("a: 1\r\n", 1),
    ],
)
def test_read_yaml__scalars(text, expected):
    value = read_yaml(text, origin="test")["a"]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: 1\na: 2", "lines 1 and 2"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("- 1\n- 2", "mapping"),
        ("a: [", "not valid YAML"),
        ("a: " + "x" * 1_000_001, "bytes"),
    ],
)
def test_read_yaml__refuses(text, word):
    with pytest.raises(ConfigError, match=word):
        read_yaml(text, origin="file.yaml")


def test_read_yaml_file__missing_folder_and_binary(tmp_path):
    (tmp_path / "utf16.yaml").write_text("a: 1", encoding="utf-16")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "utf16.yaml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_yaml_file(path)


def test_length__int_is_steps_and_float_a_share():
    assert in_steps(1, 200) == 1
    assert in_steps(1.0, 200) == 200
    assert in_steps(0.25, 200) == 50
    with pytest.raises(ValidationError):
        Outer(length=1.5)
    with pytest.raises(ValidationError):
        Outer(length=-1)


def test_override__dotted_keys_that_share_a_branch_all_count():
    """Two leaves below one inner node, in every order, as a nested mapping and mixed."""
    wanted = (8, 3, 0.5)
    for changes in (
        {"method.local_crops.size": 8, "method.local_crops.count": 3, "method.local_crops.flip": 0.5},
        {"method.local_crops.flip": 0.5, "method": {"local_crops": {"size": 8}}, "method.local_crops.count": 3},
        {"method.local_crops.count": 3, "method.local_crops": {"flip": 0.5, "size": 8}},
    ):
        crops = (
            Recipe().override({"backbone.patch_size": 8, "method.global_crops.size": 16, **changes}).method.local_crops
        )
        assert (crops.size, crops.count, crops.flip) == wanted
