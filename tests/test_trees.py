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
    assert (batch.tokens, batch.completions) == (8, 3)
    assert [t.supervised for t in trees] == [3, 1]


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
    ]
    forest = Forest(trees)
    assert list(forest) == trees
    assert (len(forest), forest[1:], forest[-1]) == (3, trees[1:], trees[2])
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
