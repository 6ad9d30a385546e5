use super::*;

/// The example of the specification's reference libraries.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const TIME: i64 = 1_614_265_330;
const BODY: &[u8] = b"{\"test\": 2432232314}";

fn signer(secret: &str, previous: Option<&str>) -> Signer {
    Signer::new(&SecretString::from(secret), previous.map(SecretString::from).as_ref()).unwrap()
}

fn wrong(secret: &str) -> String {
    Signer::new(&SecretString::from(secret), None).expect_err("a wrong secret").1.to_string()
}

fn pair_of(seed: u8) -> String {
    pair_secret(&[seed; 32]).expose_secret().to_owned()
}

#[test]
fn v1_gives_the_signature_that_the_reference_libraries_publish() {
    assert_eq!(signer(SECRET, None).sign(ID, TIME, BODY), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
}

#[test]
fn v1a_verifies_by_the_public_key_and_by_nothing_else() {
    let seed = format!("whsk_{}", STANDARD.encode([7; 32]));
    // A seed and its pair are the same key.
    assert_eq!(signer(&seed, None).sign(ID, TIME, BODY), signer(&pair_of(7), None).sign(ID, TIME, BODY));
    let signer = signer(&seed, None);
    let header = signer.sign(ID, TIME, BODY);
    let public = signer.public_keys();
    let verifier = Verifier::new(public.iter().map(String::as_str)).unwrap();
    let now = TIME.to_string();
    assert!(header.starts_with("v1a,"));
    assert_eq!(verifier.verify(ID, &now, &header, BODY, TIME), Ok(()));
    assert_eq!(verifier.verify(ID, &now, &header, b"{}", TIME), Err(Rejection::Signature));
    assert_eq!(verifier.verify("other", &now, &header, BODY, TIME), Err(Rejection::Signature));
    // The same bytes under the other version's name prove nothing.
    assert_eq!(verifier.verify(ID, &now, &header.replace("v1a", "v1"), BODY, TIME), Err(Rejection::Signature));
    let other = Verifier::new([pair_of(8).as_str()]).unwrap();
    assert_eq!(other.verify(ID, &now, &header, BODY, TIME), Err(Rejection::Signature));
}

#[test]
fn while_keys_rotate_old_and_new_receivers_both_verify() {
    let (old, new) = (SECRET, pair_of(1));
    let header = signer(&new, Some(old)).sign(ID, TIME, BODY);
    assert_eq!(header.split(' ').count(), 2);
    for key in [old, &new] {
        let verifier = Verifier::new([key]).unwrap();
        assert_eq!(verifier.verify(ID, &TIME.to_string(), &header, BODY, TIME), Ok(()), "{header}");
    }
}

#[test]
fn five_minutes_either_way_are_tolerated_and_no_second_more() {
    let verifier = Verifier::new([SECRET]).unwrap();
    let header = signer(SECRET, None).sign(ID, TIME, BODY);
    for (now, verdict) in [
        (TIME - 301, Err(Rejection::Clock)),
        (TIME - 300, Ok(())),
        (TIME + 300, Ok(())),
        (TIME + 301, Err(Rejection::Clock)),
        (i64::MIN, Err(Rejection::Clock)),
    ] {
        assert_eq!(verifier.verify(ID, &TIME.to_string(), &header, BODY, now), verdict, "{now}");
    }
    assert_eq!(verifier.verify(ID, "soon", &header, BODY, TIME), Err(Rejection::Timestamp));
}

#[test]
fn the_signature_covers_the_timestamp_as_text() {
    let verifier = Verifier::new([SECRET]).unwrap();
    let header = signer(SECRET, None).sign(ID, TIME, BODY);
    assert_eq!(verifier.verify(ID, &format!("+{TIME}"), &header, BODY, TIME), Err(Rejection::Signature));
    assert_eq!(verifier.verify(ID, &(TIME + 1).to_string(), &header, BODY, TIME), Err(Rejection::Signature));
}

#[test]
fn unknown_versions_and_rubbish_beside_a_good_signature_are_skipped() {
    let verifier = Verifier::new([SECRET]).unwrap();
    let good = signer(SECRET, None).sign(ID, TIME, BODY);
    let header = format!("v9,AAAA nonsense v1,!!! v1, {good}");
    assert_eq!(verifier.verify(ID, &TIME.to_string(), &header, BODY, TIME), Ok(()));
    for header in ["", " ", "v1", "v1,", "v1,AAAA", "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="] {
        let verdict = verifier.verify(ID, &TIME.to_string(), header, BODY, TIME);
        assert_eq!(verdict, Err(Rejection::Signature), "{header:?}");
    }
}

#[test]
fn a_wrong_secret_is_told_by_its_form_and_never_shown() {
    assert_eq!(wrong("hunter2"), "does not begin with whsec_ or whsk_ (it is not shown)");
    assert_eq!(wrong("whsec_hunter2!"), "has something other than base64 behind whsec_ (it is not shown)");
    for (bytes, fits) in [(23, false), (24, true), (64, true), (65, false)] {
        let secret = SecretString::from(format!("whsec_{}", STANDARD.encode(vec![1; bytes])));
        assert_eq!(Signer::new(&secret, None).is_ok(), fits, "{bytes} bytes");
    }
    for (bytes, fits) in [(31, false), (32, true), (33, false), (63, false), (65, false)] {
        let secret = SecretString::from(format!("whsk_{}", STANDARD.encode(vec![1; bytes])));
        assert_eq!(Signer::new(&secret, None).is_ok(), fits, "{bytes} bytes");
    }
    assert!(wrong(&format!("whsk_{}", STANDARD.encode([1; 64]))).contains("do not belong together"));
    let previous = SecretString::from("hunter2");
    let error = Signer::new(&SecretString::from(SECRET), Some(&previous)).expect_err("wrong");
    assert_eq!(error.0, "previous_secret");
    assert!(Verifier::new(["whpk_AAAA"]).is_err());
}

#[test]
fn padding_may_be_left_out() {
    let padded = format!("whsec_{}", STANDARD.encode([3; 32]));
    let bare = padded.trim_end_matches('=');
    assert_ne!(padded, bare);
    assert_eq!(signer(&padded, None).sign(ID, TIME, BODY), signer(bare, None).sign(ID, TIME, BODY));
}

#[test]
fn a_fresh_secret_can_be_used() {
    let shared = shared_secret(&[9; 32]);
    assert!(Signer::new(&shared, None).is_ok());
    assert_eq!(format!("{:?}", Signer::new(&shared, None).unwrap()), "Signer(1 keys)");
}
