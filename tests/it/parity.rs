use std::collections::BTreeMap;
use candle_core::{DType, Device, Tensor, Var};
use selfjudge::model::*;
use selfjudge::nn::AttentionBackend;
use crate::support::fixture;

struct Files(Checkpoint, BTreeMap<String, Var>, bool);
impl ParameterSource for Files {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let t = self.0.tensor(name, shape, DType::F32, &Device::Cpu)?;
        if self.2 {
            let v = Var::from_tensor(&t)?;
            let t = v.as_tensor().clone();
            self.1.insert(name.to_owned(), v);
            return Ok(t);
        }
        Ok(t)
    }
}
fn max_diff(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
}
#[test]
fn arch() {
    let mut bad = 0;
    for e in std::fs::read_dir(fixture("arch")).unwrap() {
        let dir = e.unwrap().path();
        let config = ModelConfig::from_dir(&dir).unwrap();
        let mut src = Files(Checkpoint::open(&dir).unwrap(), BTreeMap::new(), false);
        let tied = config.spec.tie_word_embeddings;
        let dec = Decoder::new(config.spec, &mut src).unwrap();
        src.0.refuse_unread(tied).unwrap();
        let g = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu).unwrap();
        let mut d = vec![];
        let mut all = vec![]; let mut cu = vec![0u32]; let mut lens = vec![];
        for i in 0..3 {
            let ids: Vec<u32> = g[&format!("ids.{i}")].to_vec1().unwrap();
            let n = ids.len() as u32;
            let h = dec.forward(Packed { ids: &ids, cu_seqlens: &[0, n], seq_lens: &[n] }, &mut AttentionBackend::Dense { cu_seqlens: &[0, n] }).unwrap();
            d.push(max_diff(&dec.logits(&h).unwrap(), &g[&format!("logits.{i}")]));
            all.extend(ids); cu.push(all.len() as u32); lens.push(n);
        }
        let h = dec.forward(Packed { ids: &all, cu_seqlens: &cu, seq_lens: &lens }, &mut AttentionBackend::Dense { cu_seqlens: &cu }).unwrap();
        let l = dec.logits(&h).unwrap();
        let gold = Tensor::cat(&[&g["logits.0"], &g["logits.1"], &g["logits.2"]], 0).unwrap();
        d.push(max_diff(&l, &gold));
        println!("{:?} {d:?}", dir.file_name().unwrap());
        if d.iter().any(|d| !(*d < 1e-4)) { bad += 1; }
    }
    assert_eq!(bad, 0);
}
#[test]
fn jsft() {
    for name in ["llama", "qwen3"] {
        let dir = fixture("jsft").join(name);
        let config = ModelConfig::from_dir(&dir).unwrap();
        let mut src = Files(Checkpoint::open(&dir).unwrap(), BTreeMap::new(), true);
        let dec = Decoder::new(config.spec, &mut src).unwrap();
        let b = candle_core::safetensors::load(dir.join("batch.safetensors"), &Device::Cpu).unwrap();
        let ids: Vec<u32> = b["ids"].to_vec1().unwrap();
        let cu: Vec<u32> = b["cu_seqlens"].to_vec1().unwrap();
        let w: Vec<f32> = b["weights"].to_vec1().unwrap();
        let lens: Vec<u32> = cu.windows(2).map(|w| w[1] - w[0]).collect();
        let h = dec.forward(Packed { ids: &ids, cu_seqlens: &cu, seq_lens: &lens }, &mut AttentionBackend::Dense { cu_seqlens: &cu }).unwrap();
        let logp = candle_nn::ops::log_softmax(&dec.logits(&h).unwrap(), 1).unwrap();
        let n = ids.len();
        let next = Tensor::new(&ids[1..], &Device::Cpu).unwrap().unsqueeze(1).unwrap();
        let lp = logp.narrow(0, 0, n - 1).unwrap().gather(&next, 1).unwrap().squeeze(1).unwrap();
        let wt = Tensor::new(&w[1..], &Device::Cpu).unwrap();
        let loss = ((&lp * &wt).unwrap().sum_all().unwrap() / -f64::from(w.iter().sum::<f32>())).unwrap();
        let gold: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(dir.join("golden.json")).unwrap()).unwrap();
        println!("{name} loss {} {}", loss.to_scalar::<f32>().unwrap(), gold["loss"]);
        let grads = loss.backward().unwrap();
        let gg = candle_core::safetensors::load(dir.join("grads.safetensors"), &Device::Cpu).unwrap();
        let mut worst = 0f32;
        assert_eq!(gg.len(), src.1.len());
        for (k, v) in &src.1 {
            worst = worst.max(max_diff(grads.get(v).unwrap(), &gg[k]));
        }
        println!("{name} grads {worst}");
        assert!(worst < 1e-4);
    }
}
