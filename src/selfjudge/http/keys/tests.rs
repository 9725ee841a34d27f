use super::*;

#[test]
fn keys_are_found_by_either_header_and_never_shown() {
    let keys = ApiKeys::parse("# ours\n\nalice: s3cret:1\nplain\n").unwrap();
    assert_eq!(keys.find(b"s3cret:1"), Some(0));
    assert_eq!(keys.find(b"plain"), Some(1));
    assert_eq!(keys.find(b"s3cret"), None);
    assert_eq!(keys.find(b""), None);
    assert_eq!(format!("{keys:?}"), r#"["alice", "key-a116c9ed46d6"]"#);
    let gate = Gate::new(keys, ApiKeys::default(), None);
    let admit = |name: &'static str, value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        gate.admit(&headers)
            .map(|caller| caller.unwrap().name.to_string())
    };
    assert_eq!(
        admit("authorization", "bearer plain").unwrap(),
        "key-a116c9ed46d6"
    );
    assert_eq!(admit("x-api-key", "s3cret:1").unwrap(), "alice");
    assert!(admit("authorization", "Basic plain").is_err());
    assert!(admit("authorization", "x").is_err());
    assert!(gate.admit(&HeaderMap::new()).is_err());
}

#[test]
fn every_key_is_compared_with_wherever_the_right_one_is() {
    let names: Vec<String> = (0..40).map(|at| format!("key-{at}-of-many")).collect();
    let keys = ApiKeys::parse(&names.join("\n")).unwrap();
    let find = |secret: &str| {
        let mut compared = Vec::new();
        let found = keys.find_by(secret.as_bytes(), |known, digest| {
            compared.push(*known);
            known.ct_eq(digest)
        });
        assert_eq!(found, keys.find(secret.as_bytes()));
        let all: Vec<[u8; 32]> = keys.0.iter().map(|key| key.digest).collect();
        assert_eq!(compared, all, "{secret}");
        found
    };
    for (at, name) in names.iter().enumerate() {
        assert_eq!(find(name), Some(at));
    }
    for wrong in ["", "key-0-of-man", "key-0-of-many2", "another"] {
        assert_eq!(find(wrong), None);
    }
}

#[test]
fn a_keys_line_says_what_its_traffic_may_be_used_for() {
    let keys = ApiKeys::parse("a:1\nb: 2  no-train\nc:3 no-retain").unwrap();
    let gate = Gate::new(keys, ApiKeys::parse("root:9").unwrap(), None);
    let admit = |key: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", key.parse().unwrap());
        let caller = gate.admit(&headers).unwrap().unwrap();
        (caller.allowed.retain, caller.allowed.train, caller.admin)
    };
    assert_eq!(admit("1"), (true, true, false));
    assert_eq!(admit("2"), (true, false, false));
    assert_eq!(admit("3"), (false, false, false));
    assert_eq!(admit("9"), (true, true, true));
}

#[test]
fn a_mark_of_the_byte_order_is_no_part_of_a_key() {
    for list in ["\u{feff}alice:x", "\u{feff}# ours\nalice:x"] {
        let keys = ApiKeys::parse(list).unwrap();
        assert!(keys.has_name("alice") && keys.find(b"x") == Some(0));
    }
    let keys = ApiKeys::parse("\u{feff}plain").unwrap();
    assert_eq!(keys.find(b"plain"), Some(0));
}

#[test]
fn a_list_of_very_many_keys_is_read() {
    let list: String = (0..60_000)
        .map(|at| format!("name-{at}:a-key-of-many-{at}\n"))
        .collect();
    let keys = ApiKeys::parse(&list).unwrap();
    assert_eq!(keys.find(b"a-key-of-many-59999"), Some(59_999));
    let twice = format!("{list}name-7:another");
    let error = ApiKeys::parse(&twice).unwrap_err();
    assert!(matches!(
        error,
        KeysError::NameTwice {
            line: 60_001,
            first: 8,
            ..
        }
    ));
}

#[test]
fn what_is_no_key_is_named_by_its_line() {
    for (list, error) in [
        ("", KeysError::None),
        ("# only\n", KeysError::None),
        ("a\n\nname:\n", KeysError::Empty(3)),
        ("a b", KeysError::Word(1)),
        ("x:ä", KeysError::Unsendable(1)),
        ("a\nagain:a", KeysError::Twice(2)),
        ("key-0123456789ab:x", KeysError::DerivedName(1)),
        ("key-0123456789AB:x", KeysError::DerivedName(1)),
        ("key-123456789012:x", KeysError::DerivedName(1)),
        ("a\u{b}b:x", KeysError::ControlInName(1)),
        ("a\u{85}b:x", KeysError::ControlInName(1)),
        (
            "alice:x\n# again\nalice:y",
            KeysError::NameTwice {
                line: 3,
                name: "alice".into(),
                first: 1,
            },
        ),
    ] {
        assert_eq!(ApiKeys::parse(list).unwrap_err(), error, "{list:?}");
    }
}

#[test]
fn each_key_is_a_tenant_whatever_address_it_comes_from() {
    let gate = Gate::new(
        ApiKeys::parse("a:1\nb:2").unwrap(),
        ApiKeys::parse("root:9").unwrap(),
        None,
    );
    let tenant = |key: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", key.parse().unwrap());
        gate.admit(&headers).unwrap().unwrap().tenant.unwrap()
    };
    assert_eq!(tenant("1"), tenant("1"));
    assert_ne!(tenant("1"), tenant("2"));
    assert_ne!(tenant("1"), tenant("9"));
}

#[test]
fn a_key_without_a_name_keeps_its_name_whatever_stands_before_it() {
    let names = |list: &str| {
        let keys = ApiKeys::parse(list).unwrap();
        let names = keys.0.iter().map(|key| key.name.to_string());
        names.collect::<Vec<_>>()
    };
    let before = names("tenantONEkey\ntenantTWOkey");
    assert_eq!(names("tenantTWOkey")[0], before[1]);
    assert_eq!(names("first:x\ntenantTWOkey no-train")[1], before[1]);
    assert_ne!(before[0], before[1]);
    // Names in the form that earlier versions gave to unnamed keys are allowed, to keep the access to their records.
    assert_eq!(names("key-2:named\nplain")[0], "key-2");
    assert_ne!(names("key-2:named\nplain")[1], "key-2");
}

#[test]
fn keys_that_can_be_guessed_are_known_by_their_lines() {
    let keys = ApiKeys::parse("a:x\nb:0123456789abcdef\n\n0123456789abcde").unwrap();
    assert_eq!(keys.short_keys(), [1, 4]);
}

#[test]
fn each_key_has_its_own_calls() {
    let keys = ApiKeys::parse("a\nb").unwrap();
    let limit = RateLimit {
        per_second: NonZeroU32::MIN,
        burst: NonZeroU32::new(2).unwrap(),
    };
    let gate = Gate::new(keys, ApiKeys::default(), Some(limit));
    let call = |key: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", key.parse().unwrap());
        gate.admit(&headers).is_ok()
    };
    assert_eq!([call("a"), call("a"), call("a")], [true, true, false]);
    assert!(call("b"));
}
