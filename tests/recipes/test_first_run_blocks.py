from counterpoint.blocks.block_grid import lay_blocks
from counterpoint.data.loader import Loader
from counterpoint.data.text.corpus import prepare
from counterpoint.recipes.first_run import first_run, two_stream_system
from counterpoint.systems.two_stream import TwoStream


def test_usual_block_ticks_are_those_of_the_training_rows() -> None:
    """Equal FLOPs rest on this number: ticks a block when rows are filled up to the longest."""
    run = first_run().arms[1]
    system = two_stream_system()
    corpus = prepare(run.text_data, system.block_ticks)
    loader = Loader(corpus.train, run.train.batch_rows, seed=0)
    model = TwoStream(system)
    for longest, tolerance in ((8, 0.02), (4, 0.025), (2, 0.02)):  # 4 and 2: those of a ramp
        blocks = 0
        for step in range(60):
            batch = loader.batch(step)
            early = model.ends_block[batch.ticks["part"]]
            grid = lay_blocks(early, batch.document_start, 8, longest=longest)
            blocks += grid.end.shape[1]
        usual = system.lengths_at(longest).usual
        assert usual is not None
        assert abs(60 * run.text_data.row_ticks / blocks / usual - 1) < tolerance
