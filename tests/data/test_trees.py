from drbode.data.trees import Completion, Tree, pack, within


def test_packed_by_hand() -> None:
    trees = [
        Tree([5, 6], [Completion([7, 8], [True, True]), Completion([9], [True])]),
        Tree([], [Completion([1, 2, 3], [True, False, True])]),
    ]
    packed = pack(trees)
    assert packed.input_ids.tolist() == [5, 6, 7, 8, 9, 1, 2, 3]
    assert packed.positions.tolist() == [0, 1, 2, 3, 2, 0, 1, 2]
    assert packed.layout == ((2, 2, 1), (0, 3))
    # 7 and 9 both follow the prompt's last token; the text's first token follows nothing.
    assert packed.sources.tolist() == [1, 2, 1, 6]
    assert packed.targets.tolist() == [7, 8, 9, 3]
    assert packed.owners.tolist() == [0, 0, 1, 2]
    assert (packed.tokens, packed.completions) == (8, 3)
    assert [t.supervised for t in trees] == [3, 1]


def test_groups_keep_order_and_budget() -> None:
    trees = [Tree([], [Completion([0] * n, [True] * n)]) for n in (3, 4, 9, 2, 2, 2)]
    groups = list(within(trees, 7))
    assert [[t.tokens for t in g] for g in groups] == [[3, 4], [9], [2, 2, 2]]
