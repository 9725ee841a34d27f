//! Tests of the optimizer against PyTorch's numbers, and of its guarantees.

use candle_core::{Device, Tensor, Var};

use super::grads::{Buffer, CHUNK};
use super::*;

fn var(values: &[f32], shape: &[usize]) -> Var {
    Var::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn values(var: &Var) -> Vec<f32> {
    var.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len());
    for (a, e) in actual.iter().zip(expected) {
        assert!((a - e).abs() <= tolerance, "{actual:?} != {expected:?}");
    }
}

const W: [f32; 6] = [0.5, -1.25, 2.0, 0.03125, -0.75, 1.5];

/// Returns the gradient of step `t` (from 1) of the 2-D fixture.
fn grad(t: usize, shape: &[usize]) -> Tensor {
    let g: Vec<f32> = (0..6)
        .map(|i| (((i * 7 + t * 3) % 11) as f32 - 5.0) / 10.0 * (1 + t) as f32)
        .collect();
    Tensor::from_vec(g, shape, &Device::Cpu).unwrap()
}

fn bias_grad(t: usize) -> Tensor {
    let g: Vec<f32> = (0..2)
        .map(|i| (((i * 5 + t * 2) % 7) as f32 - 3.0) / 10.0)
        .collect();
    Tensor::from_vec(g, 2, &Device::Cpu).unwrap()
}

/// Weight and bias, given out of order.
fn fixture(config: OptimConfig, shape: &[usize]) -> (Vec<(String, Var)>, Optimizer) {
    let params = vec![
        ("layer.weight".to_owned(), var(&W, shape)),
        ("layer.bias".to_owned(), var(&[0.1, -0.2], &[2])),
    ];
    let optimizer = Optimizer::new(&params, config).unwrap();
    (params, optimizer)
}

fn step(optimizer: &mut Optimizer, t: usize, shape: &[usize]) -> StepStats {
    let mut grads = optimizer.grad_buffers().unwrap();
    grads
        .add_named("layer.weight", &grad(t, shape), 1.0)
        .unwrap();
    grads.add_named("layer.bias", &bias_grad(t), 1.0).unwrap();
    optimizer.clip_and_step(&grads, 0.01 * t as f64).unwrap()
}

fn torch_config() -> OptimConfig {
    OptimConfig {
        beta2: 0.95,
        weight_decay: 0.1,
        ..OptimConfig::default()
    }
}

/// `torch.optim.AdamW(betas=(0.9, 0.95), weight_decay 0.1 / 0)` after `clip_grad_norm_(…, 1.0)`, torch 2.15, lr 0.01 t.
#[test]
fn adamw_equals_torch() {
    let torch_w = [
        [0.509_5, -1.258_75, 1.988, 0.041_218_75, -0.759_25, 1.498_5],
        [
            0.513_386_9,
            -1.259_571,
            1.966_656_7,
            0.054_709_27,
            -0.756_102_86,
            1.480_803_8,
        ],
        [
            0.498_632,
            -1.259_713_3,
            1.957_642_7,
            0.052_961_975,
            -0.748_916_03,
            1.482_251_3,
        ],
        [
            0.501_375_85,
            -1.269_046_8,
            1.950_378_4,
            0.069_264_95,
            -0.748_278_14,
            1.490_093_6,
        ],
        [
            0.508_345_5,
            -1.258_475_2,
            1.932_384_8,
            0.093_684_74,
            -0.763_310_85,
            1.492_708_3,
        ],
    ];
    let torch_bias = [
        [0.11, -0.19],
        [0.112_364_9, -0.173_355_01],
        [0.099_903_39, -0.156_947_21],
        [0.096_410_334, -0.148_594_78],
        [0.092_671_26, -0.134_414_35],
    ];
    let torch_norm = [
        1.516_575_098,
        2.147_091_15,
        3.289_376_735,
        3.857_460_26,
        4.651_881_694,
    ];
    let (params, mut optimizer) = fixture(torch_config(), &[2, 3]);
    for t in 1..=5 {
        let stats = step(&mut optimizer, t, &[2, 3]);
        assert_close(&values(&params[0].1), &torch_w[t - 1], 3e-7);
        assert_close(&values(&params[1].1), &torch_bias[t - 1], 3e-7);
        assert!((stats.grad_norm - torch_norm[t - 1]).abs() < 1e-6);
        assert_eq!(stats.step, t as u64);
    }
}

/// Compares the tensor path, used on other devices, with the fused loop.
#[test]
fn the_tensor_path_equals_the_fused_loop() {
    let (fused, mut optimizer) = fixture(torch_config(), &[2, 3]);
    let weight = var(&W, &[2, 3]);
    let mut moments = adamw::Moments::device_zeros(&weight).unwrap();
    for t in 1..=5 {
        let lr = 0.01 * t as f64;
        let stats = step(&mut optimizer, t, &[2, 3]);
        let k = adamw::Coefficients::new(&torch_config(), lr, 0.1, t as u64);
        moments
            .step(
                &weight,
                &Buffer::Device(grad(t, &[2, 3])),
                stats.clip_coef as f32,
                &k,
            )
            .unwrap();
        assert_close(&values(&weight), &values(&fused[0].1), 2e-7);
    }
}

/// References: an f32 implementation in PyTorch, and torch.optim.Muon (bf16 iteration, hence the second tolerance).
#[test]
fn muon_equals_torch() {
    let config = OptimConfig {
        optimizer: OptimizerKind::Muon,
        weight_decay: 0.1,
        max_grad_norm: 0.0,
        ..OptimConfig::default()
    };
    let cases = [
        (
            [3, 2],
            [
                0.493_182_5,
                -1.243_348_1,
                1.985_732_3,
                0.027_455_55,
                -0.748_274_9,
                1.490_814_2,
            ],
            [
                0.493_480_62,
                -1.243_313_8,
                1.985_500_3,
                0.027_470_235,
                -0.747_998_95,
                1.491_067_5,
            ],
        ),
        (
            [2, 3],
            [
                0.487_974_05,
                -1.249_698,
                1.980_426_8,
                0.039_143_257,
                -0.739_387_45,
                1.497_087,
            ],
            [
                0.487_936_97,
                -1.249_771_6,
                1.980_442,
                0.039_030_496,
                -0.739_329_1,
                1.497_005_1,
            ],
        ),
    ];
    for (shape, reference, torch) in cases {
        let weight = var(&W, &shape);
        let params = vec![("layer.weight".to_owned(), weight.clone())];
        let mut optimizer = Optimizer::new(&params, config.clone()).unwrap();
        for t in 1..=3 {
            let mut grads = optimizer.grad_buffers().unwrap();
            grads.add(0, &grad(t, &shape), 1.0).unwrap();
            optimizer.clip_and_step(&grads, 0.02).unwrap();
        }
        assert_close(&values(&weight), &reference, 3e-6);
        assert_close(&values(&weight), &torch, 5e-4);
    }
}

#[test]
fn muon_moves_hidden_matrices_only() {
    let matrix = || var(&W, &[2, 3]);
    for (name, var, expected) in [
        ("model.layers.0.mlp.up_proj.weight", matrix(), true),
        ("model.embed_tokens.weight", matrix(), false),
        ("lm_head.weight", matrix(), false),
        ("model.norm.weight", var(&W, &[6]), false),
        ("model.layers.0.mlp.up_proj.lora_A.weight", matrix(), false),
    ] {
        assert_eq!(muon::applies(name, &var), expected, "{name}");
    }
}

#[test]
fn norms_and_biases_do_not_decay_and_embeddings_by_choice() {
    let name = "model.embed_tokens.weight";
    let embedding = var(&W, &[2, 3]);
    let mut config = torch_config();
    assert!(decays(name, &embedding, &config));
    config.decay_embeddings = false;
    assert!(!decays(name, &embedding, &config));
    assert!(decays("a.weight", &embedding, &config));
    assert!(!decays("a.weight", &var(&W, &[6]), &config));
}

#[test]
fn a_non_finite_gradient_names_its_tensor_and_changes_nothing() {
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (params, mut optimizer) = fixture(torch_config(), &[2, 3]);
        step(&mut optimizer, 1, &[2, 3]);
        let before: Vec<_> = params.iter().map(|(_, v)| values(v)).collect();
        let mut grads = optimizer.grad_buffers().unwrap();
        let index = grads.index_of("layer.weight").unwrap();
        grads.host_mut(index).unwrap()[5] = poison;
        let error = optimizer.clip_and_step(&grads, 0.1).unwrap_err();
        assert!(error.to_string().contains("`layer.weight`"), "{error}");
        assert_eq!(optimizer.step(), 1);
        let after: Vec<_> = params.iter().map(|(_, v)| values(v)).collect();
        assert_eq!(before, after);

        // The next step is the same as without the failed one.
        let (clean, mut other) = fixture(torch_config(), &[2, 3]);
        step(&mut other, 1, &[2, 3]);
        step(&mut other, 2, &[2, 3]);
        step(&mut optimizer, 2, &[2, 3]);
        assert_eq!(values(&params[0].1), values(&clean[0].1));
    }
    // Finite values whose squares overflow f32 are not an error.
    let (_, mut optimizer) = fixture(torch_config(), &[2, 3]);
    let mut grads = optimizer.grad_buffers().unwrap();
    grads.host_mut(1).unwrap()[0] = 1e30;
    let stats = optimizer.clip_and_step(&grads, 0.1).unwrap();
    assert!((stats.grad_norm / 1e30 - 1.0).abs() < 1e-6);
}

#[test]
fn gradients_accumulate_with_their_scale() {
    let (_, optimizer) = fixture(torch_config(), &[2, 3]);
    let mut grads = optimizer.grad_buffers().unwrap();
    assert_eq!(
        grads.names().collect::<Vec<_>>(),
        ["layer.bias", "layer.weight"]
    );
    // A view that is not contiguous is added by its shape, not by its memory layout.
    let transposed = grad(1, &[3, 2]).t().unwrap();
    grads.add_named("layer.weight", &transposed, 2.0).unwrap();
    grads
        .add_named("layer.weight", &grad(2, &[2, 3]), 0.5)
        .unwrap();
    grads.scale(10.0).unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected: Vec<f32> = flat(&transposed)
        .iter()
        .zip(flat(&grad(2, &[2, 3])))
        .map(|(a, b)| (2.0 * a + 0.5 * b) * 10.0)
        .collect();
    assert_close(&flat(&grads.to_tensor(1).unwrap()), &expected, 1e-5);
    grads.zero().unwrap();
    assert_eq!(grads.global_norm().unwrap(), 0.0);

    assert!(grads.add(1, &grad(1, &[3, 2]), 1.0).is_err());
    assert!(grads.add_named("other", &grad(1, &[2, 3]), 1.0).is_err());
}

/// Odd sizes around the chunk length give the same bits on pools of one and three threads.
#[test]
fn the_number_of_threads_changes_no_bit() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let n = 3 * CHUNK + 17;
            let noise = |seed: usize| -> Vec<f32> {
                (0..n)
                    .map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 5003.0 - 1.0)
                    .collect()
            };
            let weight = var(&noise(0), &[n]);
            let params = vec![("w".to_owned(), weight.clone())];
            let mut optimizer = Optimizer::new(&params, torch_config()).unwrap();
            let mut norms = Vec::new();
            for t in 1..=3 {
                let mut grads = optimizer.grad_buffers().unwrap();
                let g = Tensor::from_vec(noise(t), n, &Device::Cpu).unwrap();
                grads.add(0, &g, 0.3).unwrap();
                norms.push(optimizer.clip_and_step(&grads, 0.01).unwrap().grad_norm);
            }
            (values(&weight), norms)
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn a_saved_state_goes_on_bit_by_bit() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
        let config = OptimConfig {
            optimizer: kind,
            ..torch_config()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("optimizer.safetensors");
        let (params, mut optimizer) = fixture(config.clone(), &[2, 3]);
        step(&mut optimizer, 1, &[2, 3]);
        step(&mut optimizer, 2, &[2, 3]);
        optimizer.save(&path).unwrap();
        let saved: Vec<_> = params.iter().map(|(_, v)| values(v)).collect();
        step(&mut optimizer, 3, &[2, 3]);

        let resumed = vec![
            ("layer.weight".to_owned(), var(&saved[0], &[2, 3])),
            ("layer.bias".to_owned(), var(&saved[1], &[2])),
        ];
        let mut optimizer = Optimizer::new(&resumed, config).unwrap();
        optimizer.load(&path).unwrap();
        assert_eq!(optimizer.step(), 2);
        let again = dir.path().join("again.safetensors");
        optimizer.save(&again).unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            std::fs::read(&again).unwrap()
        );
        step(&mut optimizer, 3, &[2, 3]);
        for ((_, a), (_, b)) in params.iter().zip(&resumed) {
            assert_eq!(values(a), values(b), "{kind:?}");
        }
    }
}

#[test]
fn a_state_that_does_not_fit_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("optimizer.safetensors");
    let (params, mut optimizer) = fixture(torch_config(), &[2, 3]);
    step(&mut optimizer, 1, &[2, 3]);
    optimizer.save(&path).unwrap();
    let complaint = |params: &[(String, Var)], config: OptimConfig| {
        let mut optimizer = Optimizer::new(params, config).unwrap();
        let error = optimizer.load(&path).unwrap_err().to_string();
        assert_eq!(optimizer.step(), 0);
        error
    };
    let (other_shape, _) = fixture(torch_config(), &[3, 2]);
    assert!(
        complaint(&other_shape, torch_config()).contains("`layer.weight.exp_avg` is F32 [2, 3]")
    );
    assert!(complaint(&params[..1], torch_config()).contains("belongs to no parameter"));
    let mut more = params.clone();
    more.push(("more".to_owned(), var(&[1.0], &[1])));
    assert!(complaint(&more, torch_config()).contains("`more.exp_avg` is missing"));
    let muon = OptimConfig {
        optimizer: OptimizerKind::Muon,
        ..torch_config()
    };
    assert!(complaint(&params, muon).contains("`layer.weight.momentum_buffer` is missing"));
    std::fs::write(&path, b"not safetensors").unwrap();
    assert!(optimizer.load(&path).is_err());
}

#[test]
fn refuses_parameters_it_cannot_hold() {
    let one = ("w".to_owned(), var(&W, &[6]));
    assert!(Optimizer::new(&[one.clone(), one], OptimConfig::default()).is_err());
    let half = Var::zeros(3, DType::F16, &Device::Cpu).unwrap();
    assert!(Optimizer::new(&[("h".to_owned(), half)], OptimConfig::default()).is_err());
    let config = OptimConfig {
        beta1: 1.0,
        ..OptimConfig::default()
    };
    assert!(Optimizer::new(&[], config).is_err());
}
