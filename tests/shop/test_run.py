from pathlib import Path

from hawker.shop.run import Run


def test_every_place_is_inside_the_run_and_none_is_shared():
    run = Run(Path("runs/demo"))
    places = [run.shoppers, run.policy, run.checkpoint, run.tensorboard, run.reports]
    assert {place.parent for place in places} == {Path("runs/demo")}
    assert len(set(places)) == len(places)
