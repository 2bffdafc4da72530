//! Models that nobody trusts: each is answered with a model or with an error, in time and memory that its size warrants.
//! What is written is read and loads again, holds all that the model held, and says of its gradients what their xs are; it
//! is the same at each call. Text is read as it was printed.
//!
//! `cargo +nightly fuzz run model`. Mutations know protobuf and ONNX (`mutate.rs`); they start from the cases of `tests/cases`
//! and from `corpus/model`, which holds inputs that reach what the cases do not. What is found becomes a test in
//! `tests/hostile.rs`. Options of a call follow from the bytes, so that one input is one run. With
//! `-- -seed=N -use_cmp=0 -reload=0` a whole run is repeatable: mutations by what is compared hold addresses, and reloading
//! goes by the clock. `-entropic=0`, `--no-trace-compares` and `RUST_LIB_BACKTRACE=0` make it three times as fast.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;
mod mutate;

use common::process::constants_and_inputs;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use mutate::Random;
use onnx_gradients::derivatives::{
    Attack, Class, Derived, Explain, Hessian, Hvp, Jacobian, Jvp, Kept, Method, Mode, PerSample, Steps, Vjp, evidence,
};
use onnx_gradients::internals::{Fact, Graph, Loaded, diff, load, operators, support};
use onnx_gradients::onnx::{ModelProto, text};
use onnx_gradients::training::{LOSSES, LossSpec, METRICS, OPTIMIZERS, Trainable, export};
use onnx_gradients::{
    Aggregation, Error, Gradients, MemoryBudget, MemoryLimit, Model, Seed, Unconnected, Wanted, command_line_within,
};
use prost::Message;

/// What the standard library draws the keys of its hash maps from: always the same, so that an input takes the same path
/// through a map in every run, and the same inputs are new to libFuzzer.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // Safety: who calls getrandom(2) gives a buffer of this length.
    unsafe { buffer.write_bytes(0x5a, length) };
    length as isize
}

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

/// What one input asks for: numbers that follow from its bytes.
struct Choice(u64);

impl Choice {
    fn below(&mut self, n: usize) -> usize {
        let choice = self.0 % n as u64;
        self.0 = (self.0 / n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.0 >> 32;
        choice as usize
    }

    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Reads a model and does one of what can be done with it.
fn process(bytes: &[u8]) -> anyhow::Result<()> {
    let hash = bytes.iter().fold(bytes.len() as u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut choice = Choice(hash >> 4);
    operators(&bytes.to_vec().into());
    let model = Model::from_bytes(bytes.to_vec())?;
    let loaded = load(&model.proto)?;
    for &node in &loaded.graph.scope(Graph::MAIN).nodes {
        support(&loaded.graph, node);
    }
    match choice.below(16) {
        0 => {
            let lowered = model.lower_gradients()?;
            read_back(&lowered.model);
        }
        1 | 2 => train(&model, &mut choice)?,
        3 => {
            let format = [&["inspect", "-"][..], &["inspect", "-", "--json"]][choice.below(2)];
            let arguments = [&["onnx-gradients"], format].concat();
            command_line_within(arguments.into_iter().map(Into::into).collect(), Some(bytes.to_vec()));
        }
        4 => {
            text::print(&model.proto);
            let printed = text::print_whole(&model.proto);
            // Attributes without a type, and sparse ones, have no text.
            if !printed.contains("...") {
                // Metadata are comments, which are not read.
                let again = text::print_whole(&text::parse(&printed).expect("what was printed is parsed"));
                let parsed = text::parse(&again).expect("what was printed is parsed");
                assert_eq!(text::print_whole(&parsed), again, "what was parsed prints as it was");
            }
        }
        5..=7 => {
            let derived = derive(&model, &mut choice)?;
            let again = read_back(&derived.model);
            // What the file has claimed before may be a lie.
            if evidence(&model).is_ok() {
                // A check may take operators that the derivative itself does not: of a newer opset.
                let old = |error: &Error| error.to_string().contains("needs opset");
                if let Err(error) = evidence(&again)
                    && !old(&error)
                {
                    panic!("what it claims can be checked: {error}");
                }
            }
        }
        _ => {
            let request = gradients(&model, &loaded, &mut choice);
            let mut output = request.build(&model)?;
            if choice.once_in(8) {
                let twin = request.build(&model).expect("what was written once is written again");
                let same = twin.model.proto.encode_to_vec() == output.model.proto.encode_to_vec();
                assert!(same, "the same request gives the same model");
            }
            if choice.once_in(4) {
                output.drop_model_outputs();
            } else if model.proto.functions.is_empty() {
                // Nodes that stand in another order than they are computed in have been brought into one.
                let [read, written] = [&model, &output.model].map(|m| m.to_bytes().expect("memory takes it"));
                let difference = diff(&read.into(), &written.into()).expect("both are models");
                assert!(difference.only_adds(), "the model is lost: {difference:#?}");
            }
            let again = read_back(&output.model);
            let reloaded = load(&again.proto).expect("what was written loads");
            // Where a model contradicts itself, what is left of it may say the other thing.
            let says = |warning: &String| warning.contains("contradicts") || warning.contains("is declared");
            let contradicts = output.warnings.iter().any(says);
            for gradient in output.gradients.iter().filter(|_| !contradicts) {
                let Some(name) = &gradient.name else { continue };
                let fact = |name: &str| reloaded.names.get(name).map(|&id| reloaded.graph.fact(id));
                let of_gradient = fact(name).unwrap_or_else(|| panic!("'{name}' is not there"));
                if let Some(x) = fact(&gradient.x) {
                    assert!(agree(x, of_gradient), "{}: {x:?}, its gradient {of_gradient:?}", gradient.x);
                }
            }
            if choice.once_in(4) {
                let xs = constants_and_inputs(&again);
                let _ = Gradients::new([Wanted::Outputs], xs).build(&again).map(|second| read_back(&second.model));
            }
        }
    }
    Ok(())
}

/// Whether two tensors may have one shape.
fn agree(a: &Fact, b: &Fact) -> bool {
    let (Some(a), Some(b)) = (a.shape.as_deref(), b.shape.as_deref()) else { return true };
    let same = |(a, b): (&_, &_)| -> bool {
        let size = |d: &onnx_gradients::rule::Dim| d.known();
        size(a).zip(size(b)).is_none_or(|(a, b)| a == b)
    };
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// A call of tf.gradients, with options.
fn gradients(model: &Model, loaded: &Loaded, choice: &mut Choice) -> Gradients {
    let mut names: Vec<&str> = loaded.names.keys().map(|name| &**name).collect();
    names.sort();
    let mut tensor = || names.get(choice.below(names.len().max(1))).copied().unwrap_or("y");
    let (y, x, stop) = (tensor(), tensor(), tensor());
    let ys = if choice.once_in(4) { vec![Wanted::Outputs, y.into()] } else { vec![Wanted::Outputs] };
    let xs = match choice.below(8) {
        0 => vec![x.into(), Wanted::Inputs],
        1 => vec![Wanted::Parameters],
        _ => constants_and_inputs(model),
    };
    let mut request = Gradients::new(ys, xs)
        .straight_through(choice.once_in(2))
        .colocate(choice.once_in(2))
        .aggregation([Aggregation::AddN, Aggregation::Tree, Aggregation::AccumulateN][choice.below(3)]);
    if choice.once_in(2) {
        request = request.unconnected(Unconnected::Zero);
    }
    if choice.once_in(2) {
        request = request.seed_each(Seed::Input(None));
    }
    if choice.once_in(8) {
        request = request.stop([stop]);
    }
    if choice.once_in(6) {
        let share = [0.1, 0.5, 0.9][choice.below(3)];
        request = request.memory_budget(MemoryBudget::new(MemoryLimit::Share(share), Default::default()));
    }
    request
}

/// A step of training and its halves; weights go back into the model.
fn train(model: &Model, choice: &mut Choice) -> Result<(), Error> {
    let loss = LossSpec::parse(LOSSES[choice.below(LOSSES.len())].name)?;
    let optimizer = OPTIMIZERS[choice.below(OPTIMIZERS.len())].name;
    let mut request = Trainable::new([loss]).optimizer(optimizer, None);
    request = request.train_batch_norm(choice.once_in(2)).accumulate(choice.below(3));
    request = request.straight_through(choice.once_in(4));
    if choice.once_in(2) {
        request = request.lora(2, 1.0);
    }
    if choice.once_in(3) {
        request = request.metrics([METRICS[choice.below(METRICS.len())].name]);
    }
    if choice.once_in(4) {
        request = request.clip(Some(1.0), Some(0.5)).dropout([], true);
    }
    let artifacts = request.build(model)?;
    for (_, model) in artifacts.models {
        read_back(&Model::from(model));
    }
    if let Ok((trained, _)) = export(&artifacts.manifest, &model.proto, &artifacts.state, Default::default()) {
        read_back(&Model::from(trained));
    }
    Ok(())
}

/// Derivatives beside gradients.
fn derive(model: &Model, choice: &mut Choice) -> Result<Derived, Error> {
    let xs = if choice.once_in(3) { constants_and_inputs(model) } else { vec![Wanted::Inputs] };
    let call = Gradients::new([Wanted::Outputs], xs).straight_through(choice.once_in(4));
    let mode = [Mode::Auto, Mode::Forward, Mode::Reverse][choice.below(3)];
    let class = [Class::Predicted, Class::Number(1), Class::Input][choice.below(3)].clone();
    let axis = [0, 1, -1][choice.below(3)];
    let batched = choice.once_in(2);
    let explain = |method| Explain::new(call.clone(), method).class(class).class_axis(axis).build(model);
    match choice.below(12) {
        0 | 1 => Jvp::from(call).build(model),
        2 => Vjp::from(call).build(model),
        3 | 4 => Hvp::from(call).build(model),
        5 => {
            let request = Jacobian::from(call).mode(mode);
            if batched { request.batch(axis) } else { request }.build(model)
        }
        6 => {
            let request = Hessian::from(call).mode(mode).diagonal(choice.once_in(2));
            if batched { request.batch(axis) } else { request }.build(model)
        }
        7 => {
            let kept = [Kept::Each, Kept::Norms, Kept::Clipped(1.0)][choice.below(3)];
            PerSample::new(call, axis).keep(kept).build(model)
        }
        8 => explain([Method::Saliency, Method::InputXGradient][choice.below(2)].clone()),
        9 => explain(Method::GradCam { layer: None }),
        10 => match choice.below(2) {
            0 => explain(Method::IntegratedGradients { steps: 3, baseline: Some(0.0).filter(|_| batched) }),
            _ => explain(Method::SmoothGrad { samples: 3, noise: 0.1, seed: Some(1).filter(|_| batched) }),
        },
        _ => {
            let random_start = Some(1).filter(|_| batched);
            let steps = [Steps::Fgsm, Steps::Pgd { count: 2, size: 0.1, random_start }][choice.below(2)];
            Attack::new(call, steps, 0.1).range(0.0, 1.0).is_loss(choice.once_in(2)).class_axis(axis).build(model)
        }
    }
}

/// What is written is read, and loads.
fn read_back(model: &Model) -> Model {
    let bytes = Model::from(model.proto.clone()).to_bytes().expect("memory takes it");
    let again = Model::from_bytes(bytes).expect("what was written is read");
    load(&again.proto).expect("what was written loads");
    again
}
