import keras
import numpy as np
import pytest

from repq_tf.layers import ACBlock
from tests.block_case import BlockCase, array


class TestACBlock(BlockCase):
    block = ACBlock
    options = {"filters": 6}
    weights = """
        sum/square_bn/gamma (6,)
        sum/square_bn/beta (6,)
        sum/square_bn/square/kernel (3, 3, 4, 6)
        sum/square_bn/statistics/moving_mean (6,)
        sum/square_bn/statistics/moving_variance (6,)
        sum/horizontal_bn/gamma (6,)
        sum/horizontal_bn/beta (6,)
        sum/horizontal_bn/horizontal/kernel (1, 3, 4, 6)
        sum/horizontal_bn/statistics/moving_mean (6,)
        sum/horizontal_bn/statistics/moving_variance (6,)
        sum/vertical_bn/gamma (6,)
        sum/vertical_bn/beta (6,)
        sum/vertical_bn/vertical/kernel (3, 1, 4, 6)
        sum/vertical_bn/statistics/moving_mean (6,)
        sum/vertical_bn/statistics/moving_variance (6,)
    """

    @pytest.mark.slow
    def test_fit_on_two_replicas_is_fit_on_one_device(self, two_replicas, float64):
        """All of Keras's training loop: the saved weights are those of one device."""

        def fit():
            model = self.model(weight_bits=8, bn_statistics="batch")
            model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
            x, y = self.features(32), self.targets(model, 32)
            model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
            return model

        with two_replicas.scope():
            mirrored = fit()
        one = fit()
        for variable, expected in zip(mirrored.variables, one.variables, strict=True):
            replicas = two_replicas.experimental_local_results(variable.value)
            for replica in replicas:
                np.testing.assert_allclose(
                    array(replica), array(expected), rtol=1e-6, atol=1e-8, err_msg=variable.path
                )
            assert len(replicas) == 2
        for one_array, other in zip(mirrored.get_weights(), one.get_weights(), strict=True):
            np.testing.assert_allclose(one_array, other, rtol=1e-6, atol=1e-8)

    def test_gammas_start_as_told_and_survive_the_file(self, tmp_path):
        third = keras.initializers.Constant(1 / 3)
        inputs = keras.Input((5, 5, 3))
        outputs = ACBlock(4, gamma_initializer=third, name="block")(inputs)
        keras.Model(inputs, outputs).save(tmp_path / "model.keras")
        block = keras.models.load_model(tmp_path / "model.keras").get_layer("block")
        twin = ACBlock.from_config(block.get_config())
        twin.build((None, 5, 5, 3))
        for child in (*block.expression.children, *twin.expression.children):
            np.testing.assert_allclose(array(child.gamma), 1 / 3, rtol=1e-6)
