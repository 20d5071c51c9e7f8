import pytest

from drbode.trees import Completion, Forest, Tree, pack, within


def test_packed_by_hand() -> None:
    trees = [
        Tree([5, 6], [Completion([7, 8], [True, True]), Completion([9], [True])]),
        Tree([], [Completion([1, 2, 3], [True, False, True])]),
    ]
    batch = pack(trees)
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 1, 2, 3]
    assert batch.positions.tolist() == [0, 1, 2, 3, 2, 0, 1, 2]
    assert batch.layout == ((2, 2, 1), (0, 3))
    # 7 and 9 both follow the prompt's last token; the text's first token follows nothing.
    assert batch.sources.tolist() == [1, 2, 1, 6]
    assert batch.targets.tolist() == [7, 8, 9, 3]
    assert batch.owners.tolist() == [0, 0, 1, 2]
    assert batch.labels.tolist() == []
    assert (batch.tokens, batch.completions) == (8, 3)
    assert [t.supervised for t in trees] == [3, 1]


def test_labels_are_those_of_all_completions_and_move_with_the_batch() -> None:
    trees = [
        Tree([5], [Completion([7], [True], True), Completion([9], [True], False)]),
        Tree([6], [Completion([8], [True], False)]),
    ]
    batch = pack(trees)
    assert batch.labels.tolist() == [True, False, False]
    moved = batch.to("meta")
    assert moved.labels.device.type == moved.input_ids.device.type == "meta"
    assert (moved.labels.dtype, moved.labels.shape) == (batch.labels.dtype, batch.labels.shape)
    assert moved.layout == batch.layout


def test_labels_of_some_completions_alone_are_refused() -> None:
    trees = [Tree([5], [Completion([7], [True], label)]) for label in (False, None, True)]
    with pytest.raises(ValueError, match="2 of 3 completions have a label"):
        pack(trees)


def test_groups_keep_order_and_budget() -> None:
    trees = [Tree([], [Completion([0] * n, [True] * n)]) for n in (3, 4, 9, 2, 2, 2)]
    groups = list(within(trees, 7))
    assert [[t.tokens for t in g] for g in groups] == [[3, 4], [9], [2, 2, 2]]


def test_a_forest_gives_its_trees_back_from_a_tenth_of_the_memory() -> None:
    import tracemalloc

    trees = [
        Tree([], [Completion([7, 8, 9], [True, False, True])]),
        Tree([1, 151_936], [Completion([2], [True]), Completion([], [])], (-0.5, -0.25)),
        Tree([3], []),
        Tree([4], [Completion([5], [True], label) for label in (False, None, True)]),
        Tree([], [Completion([6], [False], True)]),
    ]
    forest = Forest(trees)
    assert list(forest) == trees
    assert (len(forest), forest[1:], forest[-1]) == (5, trees[1:], trees[4])
    assert not Forest()

    def size(make: type[list[Tree]] | type[Forest]) -> int:
        tracemalloc.start()
        kept = make(
            Tree([], [Completion([1000 + i for i in range(500)], [True] * 500)]) for _ in range(50)
        )
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(kept) == 50
        return used

    assert size(Forest) < 7 * 50 * 500  # bytes
    assert size(list) > 40 * 50 * 500
