//! Publishing, swapping and freeing, on the pocket model.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor, Var};

use super::*;
use crate::adapter::LoraPair;
use crate::{LanguageModel, LoadOptions};

fn store() -> WeightStore {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let model = LanguageModel::load(&dir, &LoadOptions::default()).expect("the model is committed");
    WeightStore::new(model.decoder().clone())
}

const Q: &str = "model.layers.0.self_attn.q_proj";

fn adapter(store: &WeightStore, value: f32) -> (LoraConfig, AdapterWeights) {
    let config = LoraConfig::default();
    let [out, input] = store.decoder().spec().linear_shape(Q).unwrap();
    let full = |shape: (usize, usize)| Tensor::full(value, shape, &Device::Cpu).unwrap();
    let pair = LoraPair {
        a: full((config.r, input)),
        b: full((out, config.r)),
    };
    (config, [(Q.to_owned(), pair)].into())
}

fn publish(store: &WeightStore, name: &str) -> WeightsLease {
    let (config, weights) = adapter(store, 0.5);
    store.publish(name, &config, &weights).unwrap()
}

fn names(store: &WeightStore) -> Vec<String> {
    let versions = store.versions().into_iter();
    versions.map(|status| status.name.to_string()).collect()
}

#[test]
fn a_version_lives_as_long_as_it_is_held_and_its_number_is_not_given_again() {
    let store = store();
    assert_eq!(store.base().version(), WeightsVersion(1));
    let first = publish(&store, "first");
    assert_eq!(first.version(), WeightsVersion(2));
    assert_eq!(
        publish(&store, "first"),
        first,
        "a name stands for contents"
    );
    assert_eq!(names(&store), ["base", "first"]);
    let request = first.clone();
    drop(first);
    assert_eq!(store.find("first"), Some(request.clone()));
    drop(request);
    assert_eq!(names(&store), ["base"]);
    assert_eq!(store.find("first"), None);
    assert_eq!(publish(&store, "first").version(), WeightsVersion(3));
}

#[test]
fn a_swap_leaves_requests_their_version_and_gives_later_ones_the_new() {
    let store = store();
    let old = publish(&store, "old");
    let roles = Roles {
        policy: old.clone(),
        ..Roles::all(store.base())
    };
    store.set_roles(roles.clone()).unwrap();
    drop((old, roles));
    let request = store.lease(Role::Policy, None);
    assert_eq!(request.name().as_str(), "old");
    assert_eq!(store.lease(Role::Judge, None), *store.base());
    let leases = |name: &str| {
        let mut versions = store.versions().into_iter();
        let status = versions.find(|v| v.name.as_str() == name);
        status.map(|status| status.leases)
    };
    assert_eq!(leases("old"), Some(1), "the request's");
    let roles = Roles {
        policy: publish(&store, "new"),
        ..Roles::all(store.base())
    };
    store.set_roles(roles).unwrap();
    assert_eq!(store.lease(Role::Policy, None).name().as_str(), "new");
    assert_eq!((leases("old"), leases("new")), (Some(1), Some(0)));
    drop(request);
    assert_eq!((leases("old"), leases("new")), (None, Some(0)));
    store.set_roles(Roles::all(store.base())).unwrap();
    assert_eq!(names(&store), ["base"]);
    assert_eq!(leases("base"), Some(0));
}

#[test]
fn a_canary_answers_its_share_and_the_same_principals_every_time() {
    let store = store();
    let canary = |name: &str, share: f64| {
        let weights = publish(&store, name);
        let roles = Roles {
            canary: Some(Canary { weights, share }),
            ..Roles::all(store.base())
        };
        store.set_roles(roles).unwrap();
        let answered = |i: &usize| {
            let principal = PrincipalHash::of(&format!("key {i}"));
            store.lease(Role::Policy, Some(principal)).name().as_str() == name
        };
        (0..4000).filter(answered).collect::<BTreeSet<usize>>()
    };
    let tenth = canary("one", 0.1);
    assert!((320..480).contains(&tenth.len()), "{}", tenth.len());
    assert_eq!(canary("one", 0.1), tenth);
    let third = canary("one", 0.3);
    assert!((1080..1320).contains(&third.len()), "{}", third.len());
    assert!(tenth.is_subset(&third));
    let others = canary("two", 0.1);
    assert!(
        others.intersection(&tenth).count() < 100,
        "the same go first again"
    );
    assert_eq!(
        (canary("one", 0.0).len(), canary("one", 1.0).len()),
        (0, 4000)
    );
    assert_eq!(store.lease(Role::Policy, None), *store.base());
    assert_eq!(
        store.lease(Role::Judge, Some(PrincipalHash::of("key 1"))),
        *store.base()
    );
}

#[test]
fn a_trainer_may_go_on_writing_to_what_it_published() {
    let store = store();
    let (config, mut weights) = adapter(&store, 0.5);
    let b = Var::from_tensor(&weights[Q].b).unwrap();
    weights.get_mut(Q).unwrap().b = b.as_tensor().clone();
    let lease = store.publish("trained", &config, &weights).unwrap();
    let served = || format!("{:?}", product(&store, &lease));
    let before = served();
    b.set(&b.zeros_like().unwrap()).unwrap();
    assert_eq!(served(), before);
}

/// Returns the hidden states of a few tokens, computed with these weights.
fn product(store: &WeightStore, lease: &WeightsLease) -> Vec<Vec<f32>> {
    use crate::Packed;
    use kernels::nn::{AdaptedRows, AttentionBackend};
    let packed = Packed {
        ids: &[5, 6, 7],
        cu_seqlens: &[0, 3],
        seq_lens: &[3],
        prompt_lens: &[3],
        most_lens: &[3],
    };
    let backend = AttentionBackend::Dense {
        cu_seqlens: &[0, 3],
    };
    let adapted = AdaptedRows {
        rows: 0..3,
        adapter: lease.adapter().unwrap(),
    };
    let decoder = store.decoder();
    let hidden = decoder.forward_adapted(packed, &[1, 2], &backend, &[adapted]);
    hidden.unwrap().to_vec2().unwrap()
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let store = store();
    let (config, weights) = adapter(&store, 0.5);
    let refused = |name: &str, config: &LoraConfig, weights: &AdapterWeights| {
        let error = store.publish(name, config, weights).unwrap_err();
        error.to_string()
    };
    for name in ["", "base"] {
        assert!(refused(name, &config, &weights).contains("invalid adapter name"));
    }
    let nan = adapter(&store, f32::NAN).1;
    let error = refused("nan", &config, &nan);
    assert!(error.contains(Q) && error.contains("NaN"), "{error}");
    let ranked = LoraConfig {
        r: 3,
        ..config.clone()
    };
    let error = refused("rank", &ranked, &weights);
    assert!(error.contains(Q) && error.contains("says 3"), "{error}");
    let pair = weights[Q].clone();
    let elsewhere = [("model.layers.99.mlp.up_proj".to_owned(), pair)].into();
    let error = refused("nowhere", &config, &elsewhere);
    assert!(error.contains("the base model has no layer"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    assert!(store.publish_dir("missing", dir.path()).is_err());
    adapter::save(dir.path(), &config, &weights).unwrap();
    assert!(store.publish_dir("there", dir.path()).is_ok());
    assert_eq!(names(&store), ["base"]);
}

#[test]
fn roles_that_make_no_sense_change_nothing() {
    let (store, other) = (store(), store());
    let foreign = Roles::all(&publish(&other, "foreign"));
    let error = store.set_roles(foreign).unwrap_err().to_string();
    assert!(error.contains("`foreign`"), "{error}");
    for share in [-0.1, 1.1, f64::NAN] {
        let roles = Roles {
            canary: Some(Canary {
                weights: publish(&store, "canary"),
                share,
            }),
            ..Roles::all(store.base())
        };
        assert!(store.set_roles(roles).is_err(), "{share}");
    }
    assert_eq!(store.roles(), Roles::all(store.base()));
}
