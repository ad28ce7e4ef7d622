"""Adaptation: identity at the start, LoRA as the special case, merging, and gates by machine."""

import pytest
import torch
from asdflow.errors import InputError
from asdflow.models.encoder import build_encoder
from asdflow.training.adaptation import (
    LowRankLinear,
    add_low_rank,
    build_group_adapters,
    merge_low_rank,
)
from torch import nn

EAT = {
    "front_end": "eat_logmel",
    "architecture": {"name": "eat", "width": 32, "depth": 2, "heads": 4, "pad_multiple": 16},
}
LORA = {"rank": 4, "alpha": 8, "targets": ["qkv", "proj", "fc1", "fc2"]}
LOG_MEL = torch.randn(3, 32, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def encoder():
    return build_encoder(EAT, seed=0).eval()


def perturb(module, seed=1):
    """Move all weights that learn, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)


def low_rank(branches, seed=0):
    base = nn.Linear(10, 7)
    return LowRankLinear(base, 3, 6.0, branches, torch.Generator().manual_seed(seed))


def test_low_rank_layers_change_nothing_at_the_start(encoder):
    before = encoder(LOG_MEL)
    assert add_low_rank(encoder, LORA, branches=3, seed=0) == 2 * 4
    assert torch.equal(encoder(LOG_MEL), before)


def test_fully_connected_lora_of_one_branch_is_lora():
    layer, x = low_rank(1), torch.randn(4, 10)
    perturb(layer)
    assert not layer.connection.requires_grad
    lora = layer.base(x) + 6.0 / 3 * (x @ layer.down[0].T) @ layer.up[0].T
    torch.testing.assert_close(layer(x), lora)


def test_identity_connections_are_independent_branches():
    layer, x = low_rank(4), torch.randn(4, 10)
    with torch.no_grad():
        layer.up.normal_(generator=torch.Generator().manual_seed(1))
    branches = sum((x @ layer.down[i].T) @ layer.up[i].T for i in range(4))
    torch.testing.assert_close(layer(x), layer.base(x) + 2.0 * branches)


def test_the_formula_with_connections_holds():
    layer, x = low_rank(3), torch.randn(4, 10)
    perturb(layer)
    update = sum(
        layer.connection[j, i] * (x @ layer.down[i].T) @ layer.up[j].T for i in range(3) for j in range(3)
    )
    torch.testing.assert_close(layer(x), layer.base(x) + 2.0 * update, rtol=1e-4, atol=1e-5)


def test_connections_learn_and_the_base_does_not():
    layer = low_rank(3)
    perturb(layer)
    layer(torch.randn(4, 10)).sum().backward()
    assert layer.connection.grad is not None and layer.connection.grad.abs().sum() > 0
    assert layer.base.weight.grad is None


@pytest.mark.parametrize("branches", [1, 3])
def test_merged_weights_give_the_unmerged_output(encoder, branches):
    add_low_rank(encoder, LORA, branches, seed=0)
    perturb(encoder)
    expected = encoder(LOG_MEL)
    merge_low_rank(encoder)
    assert not any(isinstance(module, LowRankLinear) for module in encoder.modules())
    torch.testing.assert_close(encoder(LOG_MEL), expected, rtol=1e-4, atol=1e-5)


def test_targets_choose_the_layers(encoder):
    assert add_low_rank(encoder, {**LORA, "targets": ["qkv"]}, 1, 0) == 2
    learning = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert learning == {f"blocks.{b}.attn.qkv.{part}" for b in range(2) for part in ("down", "up")}


def test_an_encoder_without_blocks_is_refused():
    with pytest.raises(InputError, match="no layers"):
        add_low_rank(nn.Linear(3, 3), LORA, 1, 0)
    with pytest.raises(InputError, match="transformer blocks"):
        build_group_adapters(nn.Linear(3, 3), 3, 2, {"groups": 2, "bottleneck": 2}, 0)


def adapted(encoder):
    adapters = build_group_adapters(encoder, 32, machines=2, settings={"groups": 3, "bottleneck": 4}, seed=0)
    return adapters, torch.tensor([0, 1, 0])


def test_a_group_adapter_changes_nothing_at_the_start(encoder):
    before = encoder(LOG_MEL)
    adapters, adapters.machine = adapted(encoder)
    assert torch.equal(encoder(LOG_MEL), before)


def test_a_trained_group_adapter_treats_machines_differently(encoder):
    adapters, machine = adapted(encoder)
    perturb(adapters)
    with torch.no_grad():
        adapters.gate.copy_(torch.tensor([[5.0, 0, 0], [0, 0, 5.0]]))
    adapters.machine = machine
    ours = encoder(LOG_MEL)
    adapters.machine = 1 - machine
    other = encoder(LOG_MEL)
    assert (ours - other).abs().max() > 1e-3


def test_a_group_adapter_equals_its_formula(encoder):
    adapters, machine = adapted(encoder)
    perturb(adapters)
    adapters.machine = machine
    x = torch.randn(3, 5, 32)
    gate = adapters.gate.softmax(1)
    expected = x.clone()
    for clip in range(3):
        for group in range(3):
            inner = nn.functional.gelu(x[clip] @ adapters.down[1, group].T)
            expected[clip] += gate[machine[clip], group] * inner @ adapters.up[1, group].T
    torch.testing.assert_close(adapters.change(1, x), expected, rtol=1e-4, atol=1e-5)


def test_an_unseen_machine_gets_the_mean_gate(encoder):
    adapters, _ = adapted(encoder)
    perturb(adapters)
    adapters.machine = torch.tensor([-1, 1])
    gates = adapters.gates()
    torch.testing.assert_close(gates[0], adapters.gate.softmax(1).mean(0))
    torch.testing.assert_close(gates[1], adapters.gate.softmax(1)[1])
    torch.testing.assert_close(gates.sum(1), torch.ones(2))


def test_adaptation_is_a_small_share_of_a_base_sized_encoder():
    architecture = {"name": "eat", "width": 384, "depth": 2, "heads": 6}
    encoder = build_encoder({"front_end": "eat_logmel", "architecture": architecture}, seed=0)
    whole = sum(weight.numel() for weight in encoder.parameters())
    add_low_rank(encoder, {**LORA, "targets": ["qkv", "proj"]}, 1, 0)
    adapted_weights = sum(weight.numel() for weight in encoder.parameters() if weight.requires_grad)
    assert adapted_weights < 0.05 * whole
