import torch

from leakmap.problem.objects import EMPTY, GRID, corners, pack, unpack


def test_packing_keeps_every_object_and_pads_with_empty_rows():
    objects = [
        torch.tensor([[3, 0.5, 0.25, 0.5, 0.125]]),
        torch.zeros(0, 5),
        torch.tensor([[0, 0.1, 0.9, 0.2, 0.2]] * 2),
    ]
    y = pack(objects)
    assert y.shape == (3, 2, 5)
    assert y.dtype == torch.int64
    assert y[0].tolist() == [[3, GRID // 2, GRID // 4, GRID // 2, GRID // 8], [EMPTY, 0, 0, 0, 0]]
    picture, classes, boxes = unpack(y)
    assert picture.tolist() == [0, 2, 2]
    assert classes.tolist() == [3, 0, 0]
    assert torch.allclose(boxes, torch.cat(objects)[:, 1:], atol=1 / GRID)
    assert corners(boxes[:1]).tolist() == [[0.25, 0.1875, 0.75, 0.3125]]
