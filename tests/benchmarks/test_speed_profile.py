import torch

from hawker.benchmarks.speed_profile import profile


def test_a_profile_names_the_lines_that_take_the_time(capsys):
    wide, narrow = torch.rand(300, 300), torch.rand(2)

    def step() -> None:
        wide @ wide
        narrow + narrow

    profile("sums", step, 10)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("sums: ")
    assert first.endswith(" us a user-step in 2 operations of 10 shoppers")
    assert len(lines) == 2
    assert lines[0].endswith("mm.default"), "the longest first"
    assert lines[1].endswith("add.Tensor")
