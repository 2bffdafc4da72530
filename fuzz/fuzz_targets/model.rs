//! Models that nobody trusts: each is answered with a model or with an error, in time and memory that its size warrants, and
//! what is written is read and loads again.
//!
//! `cargo +nightly fuzz run model`. Mutations know protobuf and ONNX (`mutate.rs`); they start from the cases of `tests/cases`
//! and from `corpus/model`, which holds inputs that reach what the cases do not. What is found becomes a test in
//! `tests/hostile.rs`. Options of a call follow from the bytes, so that one input is one run.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;
mod mutate;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use mutate::Random;
use common::process::constants_and_inputs;
use onnx_gradients::internals::{Graph, load, support};
use onnx_gradients::onnx::ModelProto;
use onnx_gradients::training::{LossSpec, Trainable};
use onnx_gradients::{Aggregation, Gradients, Model, Seed, Unconnected, Wanted};
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let _ = process(bytes);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max: usize, seed: u32| {
    let mut random = Random::new(u64::from(seed) << 20 | size as u64);
    let known = ModelProto::decode(&data[..size]).ok().filter(|m| m.graph.is_some());
    if known.is_some() && random.below(20) == 0 {
        return fuzzer_mutate(data, size, max);
    }
    let mut model = known.filter(|_| random.below(100) > 0).unwrap_or_else(|| mutate::case(&mut random));
    for _ in 0..1 + random.below(4) {
        mutate::mutate(&mut random, &mut model);
    }
    let mutated = model.encode_to_vec();
    if mutated.len() > max {
        return fuzzer_mutate(data, size, max);
    }
    data[..mutated.len()].copy_from_slice(&mutated);
    mutated.len()
});

/// Reads a model and does one of what can be done with it.
fn process(bytes: &[u8]) -> anyhow::Result<()> {
    let hash = bytes.iter().fold(bytes.len() as u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)) >> 20;
    let choice = |shift: u32, n: usize| (hash >> shift) as usize % n;
    let model = Model::from_bytes(bytes.to_vec())?;
    let loaded = load(&model.proto)?;
    for &node in &loaded.graph.scope(Graph::MAIN).nodes {
        support(&loaded.graph, node);
    }
    match choice(0, 8) {
        0 => {
            let lowered = model.lower_gradients()?;
            read_back(&lowered.model);
        }
        1 => {
            const LOSSES: [&str; 8] =
                ["mse", "cross-entropy", "nll", "bce", "huber", "kl-divergence", "mae", "cosine-embedding"];
            const OPTIMIZERS: [&str; 4] = ["adamw", "sgd", "lamb", "adagrad"];
            let loss = LossSpec::parse(LOSSES[choice(3, LOSSES.len())])?;
            let mut request = Trainable::new([loss]).optimizer(OPTIMIZERS[choice(6, OPTIMIZERS.len())], None);
            request = request.train_batch_norm(choice(9, 2) == 0).accumulate(choice(10, 3));
            if choice(12, 2) == 0 {
                request = request.lora(2, 1.0);
            }
            let artifacts = request.build(&model)?;
            for (_, model) in artifacts.models {
                read_back(&Model::from(model));
            }
        }
        _ => {
            let mut request = Gradients::new([Wanted::Outputs], constants_and_inputs(&model))
                .straight_through(choice(3, 2) == 0)
                .colocate(choice(4, 2) == 0)
                .aggregation([Aggregation::AddN, Aggregation::Tree, Aggregation::AccumulateN][choice(5, 3)]);
            if choice(7, 2) == 0 {
                request = request.unconnected(Unconnected::Zero);
            }
            if choice(8, 2) == 0 {
                request = request.seed_each(Seed::Input(None));
            }
            let mut output = request.build(&model)?;
            if choice(9, 4) == 0 {
                output.drop_model_outputs();
            }
            let again = read_back(&output.model);
            if choice(11, 4) == 0 {
                let xs = constants_and_inputs(&again);
                let _ = Gradients::new([Wanted::Outputs], xs).build(&again).map(|second| read_back(&second.model));
            }
        }
    }
    Ok(())
}

/// What is written is read, and loads.
fn read_back(model: &Model) -> Model {
    let bytes = Model::from(model.proto.clone()).to_bytes().expect("memory takes it");
    let again = Model::from_bytes(bytes).expect("what was written is read");
    load(&again.proto).expect("what was written loads");
    again
}
