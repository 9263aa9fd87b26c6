"""Counts of operations."""

import dataclasses

from reformer.models.flops import flops_per_token
from reformer.tasks import registry
from tests.small_models import TINY


def test_operations_per_token_equal_a_count_by_hand():
    feed_forward = 2 * (8 * 16) + 2 * (16 * 8)
    local = 4 * (2 * 8 * 8) + 2 * (8 * 8) + 2 * (8 * 8)  # 4 projections; scores with and sums of 8 keys, 2 heads of 4
    lsh = 3 * (2 * 8 * 8) + 3 * (2 * (8 * 4) + 2 * (8 * 4))  # 3 projections; 3 rounds of 4 keys
    forward = local + lsh + 2 * feed_forward
    head = 2 * (2 * 8) * 10  # of both streams; not computed again
    assert flops_per_token(TINY, 16) == 4 * forward + 3 * head


def test_the_head_of_a_classifier_stands_once_above_a_sequence():
    task = {"name": "classification", "num_labels": 5, "pooling": "mean"}
    head = 2 * (2 * 8) * 8 + 2 * 8 * 5
    assert registry.flops_per_token(task, TINY, 16) == flops_per_token(TINY, 16, num_outputs=0) + 3 * head / 16


def test_without_recomputation_a_step_costs_three_forward_passes():
    full = dataclasses.replace(TINY, attention_pattern=("full",), reversible=False)
    layer = 4 * (2 * 8 * 8) + 2 * (2 * 8 * 8) + 2 * (2 * 8 * 16)  # half of the 16 keys on average
    assert flops_per_token(full, 16) == 3 * (2 * layer + 2 * (2 * 8) * 10)


def test_an_encoder_decoder_costs_its_encoder_and_cross_attention_too():
    both = dataclasses.replace(TINY, cross_attention=True, merge_streams="average")
    # Queries and output of every token, keys and values of a source as long; scores with and sums of 16 keys.
    cross = 4 * (2 * 8 * 8) + 2 * (2 * 16 * 8)
    encoder_windows = 2 * (2 * 8 * 4) + 3 * 2 * (2 * 8 * 2)  # one chunk more: 4 keys, and 2 in each of 3 rounds
    head = 3 * 2 * 8 * 10  # of the average of both streams
    stack = flops_per_token(TINY, 16) - 2 * head
    assert flops_per_token(both, 16) == 2 * stack + 4 * (2 * cross + encoder_windows) + head


def test_only_full_attention_costs_more_per_token_in_a_longer_sequence():
    full = dataclasses.replace(TINY, attention_pattern=("full",))
    assert flops_per_token(full, 16) > flops_per_token(full, 8)
    assert flops_per_token(TINY, 16) == flops_per_token(TINY, 8)


def test_one_projection_less_where_queries_and_keys_share_it():
    shared = dataclasses.replace(TINY, share_query_key=True)
    assert flops_per_token(TINY, 16) - flops_per_token(shared, 16) == 4 * (2 * 8 * 8)  # in the local layer
