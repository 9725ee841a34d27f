//! The packed layer against its definition, on every instruction set of the machine.

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;

use super::WeightFormat;
use super::packed::PackedLinear;
use crate::isa::Isa;
use crate::testing::random;

fn values(count: usize, seed: u64) -> Vec<f32> {
    random(&[count], seed)
        .to_vec1()
        .expect("a vector of f32 on the CPU")
}

fn reference(x: &[f32], w: &[f32], bias: Option<&[f32]>, m: usize, n: usize) -> Vec<f64> {
    let k = w.len() / n;
    let mut y = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let dot: f64 = (0..k)
                .map(|l| f64::from(x[i * k + l]) * f64::from(w[j * k + l]))
                .sum();
            y[i * n + j] = dot + bias.map_or(0.0, |b| f64::from(b[j]));
        }
    }
    y
}

const FORMATS: [WeightFormat; 4] = [
    WeightFormat::F32,
    WeightFormat::Bf16,
    WeightFormat::Int8,
    WeightFormat::Int4,
];

const SHAPES: [(usize, usize); 8] = [
    (1, 1),
    (5, 3),
    (16, 32),
    (17, 33),
    (48, 96),
    (100, 64),
    (131, 257),
    (64, 600),
];

#[test]
fn every_path_matches_the_definition_on_odd_shapes() {
    for isa in Isa::available() {
        for (n, k) in SHAPES {
            let (w, bias) = (values(n * k, 1), values(n, 2));
            let rounded: Vec<f32> = w.iter().map(|w| bf16::from_f32(*w).to_f32()).collect();
            for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 49, 200] {
                let x = values(m * k, 3);
                let rounded_x: Vec<f32> = x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
                for format in [WeightFormat::F32, WeightFormat::Bf16] {
                    let bias = (m % 2 == 0).then_some(bias.as_slice());
                    let layer = PackedLinear::with_isa(&w, n, k, bias, format, isa).unwrap();
                    let mut y = vec![f32::NAN; m * n];
                    layer.forward(&x, m, &mut y);
                    let want = match format {
                        WeightFormat::F32 => reference(&x, &w, bias, m, n),
                        WeightFormat::Bf16 if isa.multiplies_bf16() => {
                            reference(&rounded_x, &rounded, bias, m, n)
                        }
                        _ => reference(&x, &rounded, bias, m, n),
                    };
                    for (at, (got, want)) in y.iter().zip(&want).enumerate() {
                        assert!(
                            (f64::from(*got) - want).abs() < 2e-6 * (k as f64).sqrt().max(1.0),
                            "{isa} {format:?} m={m} n={n} k={k} at {at}: {got} for {want}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_bits_in_any_batch_and_on_any_number_of_threads() {
    let (n, k, m) = (131, 600, 230);
    let (w, bias, x) = (values(n * k, 1), values(n, 2), values(m * k, 3));
    for isa in Isa::available() {
        for format in FORMATS {
            let layer = PackedLinear::with_isa(&w, n, k, Some(&bias), format, isa).unwrap();
            let mut all = vec![0.0; m * n];
            layer.forward(&x, m, &mut all);
            for rows in [1, 2, 3, 5, 6, 7, 8, 11, 16, 33, 50, 97] {
                for threads in [1, 3] {
                    let pool = rayon::ThreadPoolBuilder::new()
                        .num_threads(threads)
                        .build()
                        .unwrap();
                    let start = (rows * 7) % (m - rows);
                    let mut some = vec![0.0; rows * n];
                    pool.install(|| {
                        layer.forward(&x[start * k..(start + rows) * k], rows, &mut some);
                    });
                    let same = some
                        .iter()
                        .zip(&all[start * n..])
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{isa} {format:?}: {rows} rows on {threads} threads");
                }
            }
        }
    }
}

#[test]
fn bf16_weights_widened_give_the_bits_of_f32_weights() {
    let (n, k) = (70, 300);
    let w: Vec<bf16> = values(n * k, 1).into_iter().map(bf16::from_f32).collect();
    for isa in Isa::available() {
        if isa.multiplies_bf16() {
            continue;
        }
        let pack = |format| PackedLinear::with_isa(&w, n, k, None, format, isa).unwrap();
        let (narrow, wide) = (pack(WeightFormat::Bf16), pack(WeightFormat::F32));
        assert!(narrow.bytes() < wide.bytes() * 6 / 10);
        for m in [1, 4, 30] {
            let x = values(m * k, 3);
            let (mut a, mut b) = (vec![0.0; m * n], vec![0.0; m * n]);
            narrow.forward(&x, m, &mut a);
            wide.forward(&x, m, &mut b);
            assert_eq!(a, b, "{isa} m={m}");
        }
    }
}

#[test]
fn tensors_of_every_dtype_and_rank_are_taken() -> Result<()> {
    let (n, k) = (10, 12);
    let weight = random(&[n, k], 1);
    let bias = random(&[n], 2);
    let x = random(&[2, 3, k], 3);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let w = weight.to_dtype(dtype)?;
        // A strided view gives the same result as its contiguous copy.
        let strided = w.t()?.contiguous()?.t()?;
        let want = x
            .reshape((6, k))?
            .matmul(&w.to_dtype(DType::F32)?.t()?)?
            .broadcast_add(&bias)?
            .reshape((2, 3, n))?;
        for w in [w, strided] {
            let layer = PackedLinear::from_tensor(&w, Some(&bias), WeightFormat::F32)?;
            let difference = crate::testing::max_difference(&layer.apply(&x)?, &want)?;
            assert!(difference < 1e-5, "{dtype:?}: {difference}");
        }
    }
    Ok(())
}

/// Returns the bits of every value.
fn bits(t: &Tensor) -> Result<Vec<u32>> {
    let values = t.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

#[test]
fn rows_are_looked_up_as_in_the_plain_weight() -> Result<()> {
    for (n, k) in SHAPES {
        let weight = random(&[n, k], 1);
        // More rows than one task takes, including duplicates and both ends.
        let rows: Vec<u32> = (0..80).map(|i| (i * 7 + n as u32 - 1) % n as u32).collect();
        let ids = Tensor::new(rows.as_slice(), &Device::Cpu)?;
        for stored in [DType::F32, DType::F16, DType::BF16] {
            let weight = weight.to_dtype(stored)?;
            for (format, kept) in [
                (WeightFormat::F32, stored),
                (WeightFormat::Bf16, DType::BF16),
            ] {
                let plain = weight.to_dtype(kept)?.index_select(&ids, 0)?;
                let packed = PackedLinear::from_tensor(&weight, None, format)?;
                let found = packed.rows(&rows)?;
                assert_eq!(found.dims(), [rows.len(), k]);
                assert_eq!(
                    bits(&found)?,
                    bits(&plain.to_dtype(DType::F32)?)?,
                    "{stored:?} as {format:?}, [{n}, {k}]"
                );
                assert_eq!(packed.rows(&[])?.dims(), [0, k]);
                assert!(packed.rows(&[n as u32]).is_err());
            }
            for format in [WeightFormat::Int8, WeightFormat::Int4] {
                let packed = PackedLinear::from_tensor(&weight, None, format)?;
                let found = packed.rows(&rows)?;
                assert_eq!(found.dims(), [rows.len(), k]);
                let exact = weight.to_dtype(DType::F32)?.index_select(&ids, 0)?;
                let largest = exact.abs()?.max_all()?.to_scalar::<f32>()?;
                let steps = if format == WeightFormat::Int8 {
                    127.0
                } else {
                    8.0
                };
                let difference = crate::testing::max_difference(&found, &exact)?;
                assert!(
                    difference <= 1.25 * largest / steps,
                    "{format}: {difference}"
                );
                assert!(packed.rows(&[n as u32]).is_err());
            }
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let isa = Isa::detect();
    let format = WeightFormat::F32;
    assert!(PackedLinear::with_isa(&[0f32; 5], 2, 3, None, format, isa).is_err());
    assert!(PackedLinear::with_isa(&[0f32; 6], 2, 3, Some(&[0.0]), format, isa).is_err());
    let layer = PackedLinear::new(&[0f32; 6], 2, 3, None, format)?;
    assert!(layer.apply(&random(&[4, 2], 1)).is_err());
    let ids = Tensor::zeros((2, 3), DType::U32, &Device::Cpu)?;
    assert!(PackedLinear::from_tensor(&ids, None, format).is_err());
    Ok(())
}

#[test]
fn layers_of_one_input_together_give_the_bits_of_each_alone() -> Result<()> {
    let k = 70;
    for isa in Isa::available() {
        for format in FORMATS {
            let layer = |n: usize, seed| {
                let (w, bias) = (values(n * k, seed), values(n, seed + 1));
                PackedLinear::with_isa(&w, n, k, Some(&bias), format, isa)
            };
            // 600 outputs are enough work for several threads.
            let layers = [layer(600, 1)?, layer(33, 3)?, layer(1, 5)?];
            for m in [1, 9, 200] {
                let x = random(&[m, k], 7);
                let together = PackedLinear::apply_all(layers.each_ref(), &x)?;
                for (layer, y) in layers.iter().zip(together) {
                    assert_eq!(y.dims(), [m, layer.out_features()]);
                    let alone: Vec<Vec<f32>> = layer.apply(&x)?.to_vec2()?;
                    assert_eq!(y.to_vec2::<f32>()?, alone, "{isa} {format:?} m={m}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_product_is_added_to_some_rows_in_place() -> Result<()> {
    for (n, k) in SHAPES {
        for format in FORMATS {
            let layer = PackedLinear::from_tensor(&random(&[n, k], 1), None, format)?;
            let (x, y) = (random(&[5, k], 2), random(&[9, n], 3));
            let want = Tensor::cat(
                &[
                    &y.narrow(0, 0, 3)?,
                    &(y.narrow(0, 3, 5)? + layer.apply(&x)?)?,
                    &y.narrow(0, 8, 1)?,
                ],
                0,
            )?
            .to_vec2::<f32>()?;
            layer.add_to(&y.narrow(0, 3, 5)?, &x)?;
            assert_eq!(y.to_vec2::<f32>()?, want, "[{n}, {k}] {format:?}");
            assert!(layer.add_to(&y, &x).is_err());
        }
    }
    Ok(())
}
