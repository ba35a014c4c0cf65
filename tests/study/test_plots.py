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
    colours = [{each.get_label(): each.lines[0].get_color() for each in axes.containers} for axes in figure.axes]
    assert [set(panel) for panel in colours] == [{"one", "both"}, {"both"}, {"one", "both"}]
    assert len(set(colours[0].values())) == 2
    assert colours[2] == colours[0]
    assert colours[1]["both"] == colours[0]["both"]
