"""The table of heads, and their settings as text."""

import subprocess
import sys

import pytest

from probes.heads import LinearHead, make_head, parse_settings


def test_torch_is_not_imported_before_it_trains() -> None:
    script = (
        "import sys, numpy as np; from probes.heads import make_head;"
        "head = make_head('knn', k=1).fit(np.ones((2, 3)), np.ones((2, 1)));"
        "head.predict_proba(np.ones((5, 3)));"
        "sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


class TestSettings:
    def test_text_is_read_as_the_declared_type(self) -> None:
        texts = ["lr=0.01", "standardize=False", "epochs = 3", "loss=ce", "weight_decay=1"]
        given = parse_settings("linear", texts)
        assert given == {
            "lr": 0.01,
            "standardize": False,
            "epochs": 3,
            "loss": "ce",
            "weight_decay": 1.0,
        }
        assert [type(value) for value in given.values()] == [float, bool, int, str, float]
        assert parse_settings("knn", ["temperature=none"]) == {"temperature": None}
        assert parse_settings("knn", ["temperature=7e-2"]) == {"temperature": 0.07}
        assert parse_settings("knn", []) == {}

    @pytest.mark.parametrize(
        ("name", "texts", "message"),
        [
            pytest.param(
                "liner",
                [],
                "no head 'liner'; known heads: abmil, knn, linear, logistic, xgboost, decoder2d",
                id="head",
            ),
            pytest.param(
                "knn", ["lr=1"], "knn has no setting 'lr'; it has: k, temperature", id="setting"
            ),
            pytest.param("knn", ["k"], "written key=value, got 'k'", id="no-value"),
            pytest.param("knn", ["k="], "written key=value, got 'k='", id="empty-value"),
            pytest.param("knn", ["k=2", "k=3"], "k is given twice: 2 and 3", id="twice"),
            pytest.param("knn", ["k=2.5"], "must be a whole number, got '2.5'", id="int"),
            pytest.param("linear", ["lr=fast"], "must be a number, got 'fast'", id="float"),
            pytest.param(
                "linear", ["standardize=maybe"], "must be true or false, got 'maybe'", id="bool"
            ),
            pytest.param("linear", ["loss=mse"], "must be bce or ce, got 'mse'", id="choice"),
            pytest.param(
                "knn", ["temperature=hot"], "a number or none, got 'hot'", id="optional-float"
            ),
            pytest.param("linear", ["lr=0"], "lr must be a number above 0, got 0.0", id="lr"),
            pytest.param("linear", ["lr=nan"], "lr must be a number above 0", id="lr-nan"),
            pytest.param("linear", ["weight_decay=-1"], "of at least 0, got -1.0", id="decay"),
            pytest.param("linear", ["epochs=0"], "at least 1, got .* epochs=0", id="epochs"),
            pytest.param("linear", ["batch_size=0"], "got batch_size=0", id="batch"),
            pytest.param("linear", ["seed=-1"], "seed must be at least 0, got -1", id="seed"),
            pytest.param("knn", ["k=0"], "at least 1 neighbour, got 0", id="k"),
            pytest.param("knn", ["temperature=0"], "a number above 0, or none", id="temperature"),
        ],
    )
    def test_settings_that_cannot_be_used(self, name: str, texts: list[str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_settings(name, texts)

    def test_values_that_are_not_text_keep_their_type(self) -> None:
        assert make_head("linear", lr=1).get_params()["lr"] == 1.0
        with pytest.raises(ValueError, match="k of head knn must be a whole number, got True"):
            make_head("knn", k=True)
        with pytest.raises(ValueError, match=r"k of head knn must be a whole number, got 2\.5"):
            make_head("knn", k=2.5)

    def test_a_constructor_checks_what_the_table_does_not(self) -> None:
        with pytest.raises(ValueError, match="loss must be bce or ce, got 'mse'"):
            LinearHead(loss="mse")  # type: ignore[arg-type]
