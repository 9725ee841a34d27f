use candle_core::{Device, Tensor};

use super::*;
use model::adapter::{AdapterWeights, LoraConfig, LoraPair};

fn made_with() -> BaseIdentity {
    BaseIdentity {
        base: "0".into(),
        adapter: None,
        tokenizer: Some("1".into()),
        weights: Some("bf16".into()),
    }
}

fn lineage() -> Lineage {
    Lineage {
        parent: "base".into(),
        reference: "base".into(),
        judge: "base".into(),
        stage: 1,
        updates: 2,
        pairs: 3,
        made_with: made_with(),
        extrapolate: 0.0,
        config: serde_json::json!({"a": 1}),
    }
}

#[test]
fn a_generation_belongs_to_the_adapter_that_learning_began_at() {
    let dir = tempfile::tempdir().unwrap();
    let over = |first: Option<&str>| {
        let bases = Bases::known_with("0", first, "1");
        Generations::open(dir.path()).unwrap().of(bases)
    };
    // Of the bare model, and of the model with either adapter.
    for made in [None, Some("x"), Some("y")] {
        let bases = Bases::known_with("0", made, "1");
        let lineage = Lineage {
            made_with: BaseIdentity {
                base: bases.base().unwrap().to_owned(),
                adapter: bases.adapter().unwrap(),
                ..made_with()
            },
            ..lineage()
        };
        let id = over(made).write_adapter(lineage, adapter(1.0)).unwrap().0;
        assert!(over(made).check_first().is_ok() && over(made).served(&id).is_ok());
        for other in [None, Some("x"), Some("y")] {
            if other == made {
                continue;
            }
            for error in [
                over(other).check_first().unwrap_err(),
                over(other).served(&id).unwrap_err(),
            ] {
                let LearnError::OtherBase {
                    id: named, what, ..
                } = error
                else {
                    panic!("{error}");
                };
                assert_eq!((&named, what), (&id, "the adapters at the start"));
            }
        }
        // For other weights the adapter is not compared.
        let elsewhere = Generations::open(dir.path()).unwrap();
        let elsewhere = elsewhere.of(Bases::known_with("2", Some("x"), "1"));
        assert!(elsewhere.check_first().is_ok() && elsewhere.served(&id).is_err());
        fs::remove_dir_all(dir.path().join(&id)).unwrap();
    }
}

#[test]
fn generation_zero_is_the_adapter_that_learning_began_at() {
    let dir = tempfile::tempdir().unwrap();
    let bare = generations(&dir);
    assert!(bare.served(BASE).unwrap().is_none() && bare.trained(BASE).unwrap().is_none());
    let began = generations(&dir).beginning_with(Some(adapter(2.0)));
    for first in [began.served(BASE), began.trained(BASE)] {
        assert_eq!(first.unwrap().unwrap().config, adapter(2.0).config);
    }
    assert!(!began.is_extrapolated(BASE).unwrap());
}

fn generations(dir: &tempfile::TempDir) -> Generations {
    Generations::open(dir.path())
        .unwrap()
        .of(Bases::known("0", "1"))
}

fn write(dir: &Path) -> Result<(), TrainError> {
    for (name, text) in [(WEIGHTS_FILE, "weights"), (CONFIG_FILE, "{}")] {
        let path = dir.join(name);
        fs::write(&path, text).map_err(TrainError::io("cannot write", &path))?;
    }
    Ok(())
}

/// Returns the id of a generation with this manifest, as another process with write access could have made it.
fn forged(generations: &Generations, manifest: &Manifest) -> String {
    let text = serde_json::to_vec_pretty(manifest).unwrap();
    let id = sha256_bytes(&text);
    let dir = generations.root.join(&id);
    fs::create_dir(&dir).unwrap();
    write(&dir).unwrap();
    fs::write(dir.join(MANIFEST), text).unwrap();
    id
}

#[test]
fn a_manifest_lists_files_of_its_directory_and_all_that_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let generations = generations(&dir);
    let (id, _) = generations.write(lineage(), write).unwrap();
    let (whole, manifest) = generations.verified(&id).unwrap();
    fs::write(dir.path().join("x"), "weights").unwrap();
    let rename = |to: &str| {
        let mut manifest = manifest.clone();
        manifest.files.push(ListedFile {
            name: to.to_owned(),
            ..manifest.files[0].clone()
        });
        manifest
    };
    let without = |name: &str| {
        let mut manifest = manifest.clone();
        manifest.files.retain(|listed| listed.name != name);
        manifest
    };
    let absolute = whole.join(WEIGHTS_FILE);
    let strange = [
        rename("../x"),
        rename("../../x"),
        rename(&format!("../{id}/{WEIGHTS_FILE}")),
        rename(&format!("./{WEIGHTS_FILE}")),
        rename(absolute.to_str().unwrap()),
        rename(".."),
        rename("."),
        rename(""),
        without(WEIGHTS_FILE),
        without(CONFIG_FILE),
        Manifest {
            files: Vec::new(),
            ..manifest.clone()
        },
        Manifest {
            lineage: Lineage {
                extrapolate: 0.5,
                ..lineage()
            },
            ..manifest.clone()
        },
    ];
    for manifest in strange {
        let id = forged(&generations, &manifest);
        let error = generations.verified(&id).unwrap_err();
        assert!(
            matches!(error, LearnError::DamagedGeneration { .. }),
            "{:?}: {error}",
            manifest.files
        );
    }
}

#[test]
fn a_generation_of_another_base_or_tokenizer_is_of_no_use() {
    let dir = tempfile::tempdir().unwrap();
    let made = generations(&dir);
    let (id, _) = made.write_adapter(lineage(), adapter(1.0)).unwrap();
    // Generations of earlier versions have no tokenizer.
    let older = Lineage {
        made_with: BaseIdentity {
            tokenizer: None,
            ..made_with()
        },
        ..lineage()
    };
    let (older, _) = made.write_adapter(older, adapter(1.0)).unwrap();
    assert!(made.served(&id).is_ok() && made.served(&older).is_ok());
    for (base, tokenizer, older_serves) in [("2", "1", false), ("0", "2", true)] {
        let other = Generations::open(dir.path()).unwrap();
        let other = other.of(Bases::known(base, tokenizer));
        let errors = [
            other.verified(&id).err(),
            other.served(&id).err(),
            other.trained(&id).err(),
            other.is_extrapolated(&id).err(),
        ];
        for error in errors {
            let error = error.unwrap();
            assert!(matches!(error, LearnError::OtherBase { .. }), "{error}");
        }
        assert_eq!(other.served(&older).is_ok(), older_serves);
    }
}

#[test]
fn a_generation_serves_only_in_the_type_of_weights_that_passed_the_gates() {
    let dir = tempfile::tempdir().unwrap();
    let made = generations(&dir);
    let (id, _) = made.write_adapter(lineage(), adapter(1.0)).unwrap();
    // Generations of earlier versions do not name the type.
    let older = Lineage {
        made_with: BaseIdentity {
            weights: None,
            ..made_with()
        },
        ..lineage()
    };
    let (older, _) = made.write_adapter(older, adapter(1.0)).unwrap();
    let within = |weights| {
        let here = Generations::open(dir.path()).unwrap();
        here.of(Bases::known_in("0", "1", weights))
    };
    assert!(within("bf16").served(&id).is_ok());
    assert!(within("f32").served(&older).is_ok());
    let error = within("f32").served(&id).unwrap_err();
    assert!(matches!(error, LearnError::OtherBase { .. }), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("the types of the weights differ (made with bf16, here f32)"),
        "{error}"
    );
}

#[tokio::test]
async fn only_what_is_listed_and_old_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let generations = generations(&dir);
    let made = |stage| {
        let lineage = Lineage { stage, ..lineage() };
        generations.write(lineage, write).unwrap().0
    };
    // The newest first; the last one is not listed.
    let ids: Vec<String> = (1..=5).rev().map(made).collect();
    let mut listed = ids[..4].to_vec();
    listed.insert(0, "f".repeat(64));
    listed.insert(0, "../x".to_owned());
    let promoted = ids[3].clone();
    let removed = generations
        .remove(listed, 2, async |id: &str| Ok(id == promoted))
        .await
        .unwrap();
    assert_eq!(removed, [ids[2].as_str()]);
    generations.sweep_removed().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
    let mut left = generations.ids().unwrap();
    left.sort();
    let mut expected: Vec<String> = [0, 1, 3, 4].map(|at: usize| ids[at].clone()).into();
    expected.sort();
    assert_eq!(left, expected);
    assert!(generations.verified(&promoted).is_ok());
}

#[tokio::test]
async fn a_removal_that_is_interrupted_is_undone_or_completed() {
    let dir = tempfile::tempdir().unwrap();
    let generations = generations(&dir);
    let made = |stage| {
        let lineage = Lineage { stage, ..lineage() };
        generations.write(lineage, write).unwrap().0
    };
    let (kept, removed) = (made(1), made(2));
    // A trainer that is killed while it asks whether a pointer names the generation.
    let failed = async |_: &str| Err(LearnError::Panicked("killed".to_owned()));
    let stopped = generations.remove(vec![kept.clone()], 0, failed).await;
    assert!(stopped.is_err() && generations.verified(&kept).is_err());
    let unpointed = async |_: &str| Ok(false);
    let gone = generations.remove(vec![removed.clone()], 0, unpointed);
    assert_eq!(gone.await.unwrap(), [removed.as_str()]);
    assert!(generations.listed(&removed).is_err());
    generations.sweep().unwrap();
    assert!(generations.verified(&kept).is_ok());
    assert_eq!(generations.ids().unwrap(), [kept]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn the_same_contents_have_the_same_name() {
    let dir = tempfile::tempdir().unwrap();
    let generations = generations(&dir);
    let (one, _) = generations.write(lineage(), write).unwrap();
    let (two, _) = generations.write(lineage(), write).unwrap();
    assert_eq!(one, two);
    assert_eq!(generations.ids().unwrap(), [one.as_str()]);
    let (_, manifest) = generations.verified(&one).unwrap();
    assert_eq!(manifest.lineage, lineage());

    let other = Lineage {
        stage: 2,
        ..lineage()
    };
    assert_ne!(generations.write(other, write).unwrap().0, one);
}

/// Returns an adapter of one layer whose `B` has this value everywhere.
fn adapter(value: f32) -> Adapter {
    let matrix = |value| Tensor::full(value, (2, 2), &Device::Cpu).unwrap();
    let pair = LoraPair {
        a: matrix(1.0),
        b: matrix(value),
    };
    Adapter {
        config: LoraConfig {
            r: 2,
            ..LoraConfig::default()
        },
        weights: AdapterWeights::from([("model.layers.0.mlp.up_proj".to_owned(), pair)]),
    }
}

fn value(adapter: Option<Adapter>) -> f32 {
    let adapter = adapter.unwrap();
    let b = &adapter.weights["model.layers.0.mlp.up_proj"].b;
    b.to_vec2::<f32>().unwrap()[1][1]
}

#[test]
fn extrapolation_does_not_compound_over_stages() {
    let dir = tempfile::tempdir().unwrap();
    let generations = generations(&dir);
    // A stage that starts from a generation, adds one to it, and scales the served adapter by one and a half.
    let stage = |start: Option<Adapter>, stage| {
        let trained = adapter(start.map_or(0.0, |start| value(Some(start))) + 1.0);
        let lineage = Lineage {
            stage,
            extrapolate: 0.5,
            ..lineage()
        };
        generations.write_adapter(lineage, trained).unwrap().0
    };
    let first = stage(generations.trained("base").unwrap(), 1);
    assert_eq!(value(generations.trained(&first).unwrap()), 1.0);
    assert_eq!(value(generations.served(&first).unwrap()), 1.5);
    let second = stage(generations.trained(&first).unwrap(), 2);
    assert_eq!(value(generations.trained(&second).unwrap()), 2.0);
    assert_eq!(value(generations.served(&second).unwrap()), 3.0);
    assert!(generations.is_extrapolated(&second).unwrap());

    let (plain, _) = generations.write_adapter(lineage(), adapter(4.0)).unwrap();
    assert_eq!(value(generations.trained(&plain).unwrap()), 4.0);
    assert_eq!(value(generations.served(&plain).unwrap()), 4.0);
    assert!(!generations.is_extrapolated(&plain).unwrap());
    assert!(!generations.is_extrapolated("base").unwrap());
}

#[test]
fn damage_is_found_and_strange_ids_are_no_paths() {
    let dir = tempfile::tempdir().unwrap();
    let generations = generations(&dir);
    let (id, _) = generations.write(lineage(), write).unwrap();
    fs::write(dir.path().join(&id).join("adapter_model.safetensors"), "w").unwrap();
    let error = generations.verified(&id).unwrap_err();
    assert!(
        matches!(error, LearnError::DamagedGeneration { .. }),
        "{error}"
    );
    for id in [
        "..",
        "",
        "../../etc/passwd",
        &"g".repeat(64),
        &"0".repeat(64),
    ] {
        let error = generations.verified(id).unwrap_err();
        assert!(matches!(error, LearnError::NoGeneration(_)), "{error}");
    }
}

#[test]
fn a_write_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let generations = generations(&dir);
    let full = |dir: &Path| {
        write(dir)?;
        fs::write("/dev/full", b"x").map_err(TrainError::io("cannot write", dir))
    };
    assert!(generations.write(lineage(), full).is_err());
    assert!(entries(dir.path()).unwrap().is_empty());
    fs::create_dir(dir.path().join("tmp-1")).unwrap();
    generations.sweep().unwrap();
    assert!(entries(dir.path()).unwrap().is_empty());
}

#[test]
fn what_is_in_memory_is_neither_read_nor_verified_again() {
    let dir = tempfile::tempdir().unwrap();
    let learner = generations(&dir).keeping(2);
    let made = |stage| {
        let lineage = Lineage { stage, ..lineage() };
        let (id, manifest) = learner
            .write_adapter(lineage, adapter(stage as f32))
            .unwrap();
        assert_eq!(learner.listed(&id).unwrap().1, manifest);
        let weights = dir.path().join(&id).join(WEIGHTS_FILE);
        fs::write(weights, "damaged").unwrap();
        id
    };
    let ids: Vec<String> = (1..=3).map(made).collect();
    let is_damaged = |read: Result<Option<Adapter>, LearnError>| {
        matches!(read, Err(LearnError::DamagedGeneration { .. }))
    };
    for (id, expected) in ids.iter().zip([1.0, 2.0, 3.0]).skip(1) {
        assert_eq!(value(learner.served(id).unwrap()), expected);
        assert_eq!(value(learner.trained(id).unwrap()), expected);
    }
    // The oldest one was dropped, and other processes have only the files.
    assert!(is_damaged(learner.served(&ids[0])));
    assert!(
        ids.iter()
            .all(|id| is_damaged(generations(&dir).served(id)))
    );
    // The manifest is all that a question about the lineage reads.
    assert!(!generations(&dir).is_extrapolated(&ids[0]).unwrap());
}

#[tokio::test]
async fn a_pruned_generation_is_not_served_from_memory() {
    let dir = tempfile::tempdir().unwrap();
    let generations = generations(&dir).keeping(2);
    let (id, _) = generations.write_adapter(lineage(), adapter(1.0)).unwrap();
    let unpointed = async |_: &str| Ok(false);
    let removed = generations
        .remove(vec![id.clone()], 0, unpointed)
        .await
        .unwrap();
    assert_eq!(removed, [id.as_str()]);
    assert!(matches!(
        generations.served(&id),
        Err(LearnError::NoGeneration(_))
    ));
}
