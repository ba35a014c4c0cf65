"""The plots of a study."""

from care_jax.study import plots
from tests.study.example import study_of


def test_an_arm_has_its_colour_in_every_panel_and_all_are_named(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure) or path)
    rows = [
        {"kind": "mean", "arm": arm, "point": {"data.fraction": x}, "culture": culture, "value": x, "low": 0, "high": 1}
        for arm, cultures in (("one", ["chinese", "all"]), ("both", ["chinese", "all", "arab"]))
        for culture in cultures
        for x in (0.5, 1.0)
    ]
    plots.curves(study_of(tmp_path), "accuracy", rows, tmp_path)
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes] == ["chinese", "arab", "all"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"one", "both"}
    shown = [{one.get_label(): one.lines[0].get_color() for one in axes.containers} for axes in figure.axes]
    assert [set(one) for one in shown] == [{"one", "both"}, {"both"}, {"one", "both"}]
    assert len(set(shown[0].values())) == 2
    assert shown[2] == shown[0]
    assert shown[1]["both"] == shown[0]["both"]
