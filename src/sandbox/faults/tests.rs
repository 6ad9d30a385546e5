use super::*;

const WRITE: Asked<'static> =
    Asked { method: "PATCH", operation: Operation::Write, conversation: Some("conv_ab"), forced: &[] };
const READ: Asked<'static> =
    Asked { method: "GET", operation: Operation::Read, conversation: Some("conv_cd"), forced: &[] };

fn draws(faults: &Faults, seed: u64, kind: Kind, asked: Asked<'_>, n: usize) -> Vec<bool> {
    let active = Active::new(faults.clone(), seed);
    (0..n).map(|_| active.strikes(kind, asked)).collect()
}

#[test]
fn the_same_seed_and_order_meets_the_same_faults() {
    let faults = Faults::none().with(Kind::ServerError, Rule::probability(0.3));
    let first = draws(&faults, 7, Kind::ServerError, WRITE, 500);
    assert_eq!(first, draws(&faults, 7, Kind::ServerError, WRITE, 500));
    assert_ne!(first, draws(&faults, 8, Kind::ServerError, WRITE, 500));
}

#[test]
fn a_probability_is_met_over_many_requests() {
    let faults = Faults::none().with(Kind::ServerError, Rule::probability(0.1));
    let struck = draws(&faults, 3, Kind::ServerError, WRITE, 20_000).into_iter().filter(|struck| *struck).count();
    assert!((1_800..2_200).contains(&struck), "{struck}");
}

#[test]
fn a_count_is_spent_and_then_over() {
    let faults = Faults::none().with(Kind::ResetAfter, Rule::times(3));
    assert_eq!(draws(&faults, 1, Kind::ResetAfter, WRITE, 6), [true, true, true, false, false, false]);
}

#[test]
fn a_filter_spares_the_others_and_does_not_count_them() {
    let only = Only {
        methods: vec!["PATCH".into()],
        conversation: Some("^conv_a".into()),
        skip_n: 1,
        first_n: Some(2),
        ..Only::default()
    };
    let active = Active::new(Faults::none().with(Kind::Throttle, Rule::probability(1.0).only(only)), 1);
    assert!(!active.strikes(Kind::Throttle, READ));
    let struck: Vec<bool> = (0..5).map(|_| active.strikes(Kind::Throttle, WRITE)).collect();
    assert_eq!(struck, [false, true, true, false, false]);
}

#[test]
fn token_requests_are_spared_unless_named() {
    let token = Asked { operation: Operation::Token, method: "POST", conversation: None, forced: &[] };
    let all = Faults::none().with(Kind::ServerError, Rule::probability(1.0));
    assert_eq!(draws(&all, 1, Kind::ServerError, token, 1), [false]);
    let only = Only { operations: vec![Operation::Token], ..Only::default() };
    let tokens = Faults::none().with(Kind::ServerError, Rule::probability(1.0).only(only));
    assert_eq!(draws(&tokens, 1, Kind::ServerError, token, 1), [true]);
    assert_eq!(draws(&tokens, 1, Kind::ServerError, WRITE, 1), [false]);
}

#[test]
fn a_forced_fault_strikes_without_a_rule() {
    let active = Active::new(Faults::none(), 1);
    assert!(active.strikes(Kind::ResetBefore, Asked { forced: &[Kind::ResetBefore], ..WRITE }));
}

#[test]
fn the_full_form_reads_back_and_names_every_fault() {
    let faults = Faults::none()
        .with(Kind::AppliedThen500, Rule::probability(0.015))
        .parameters(|parameters| parameters.latency_ms = [1, 5]);
    let text = serde_json::to_string(&faults).unwrap();
    for kind in Kind::ALL {
        assert!(text.contains(&format!("{:?}:", kind.name())), "{} is missing", kind.name());
    }
    let again = Faults::from_json(&text).unwrap();
    assert_eq!(again.rules.get(&Kind::AppliedThen500), faults.rules.get(&Kind::AppliedThen500));
    assert_eq!(again.parameters, faults.parameters);
    assert_eq!(draws(&again, 1, Kind::ServerError, WRITE, 50), vec![false; 50]);
}

#[test]
fn a_bare_number_is_a_probability() {
    let faults = Faults::from_json(r#"{"server_error": 1, "reset_after": {"count": 2}}"#).unwrap();
    assert_eq!(faults.rules.get(&Kind::ServerError).and_then(|rule| rule.probability), Some(1.0));
    assert_eq!(faults.rules.get(&Kind::ResetAfter).and_then(|rule| rule.count), Some(2));
}

#[test]
fn wrong_settings_are_named() {
    for (text, part) in [
        (r#"{"server_eror": 1}"#, "server_error"),
        (r#"{"server_error": 1.5}"#, "from 0 to 1"),
        (r#"{"server_error": {"probabilty": 1}}"#, "server_error: unknown field"),
        (r#"{"server_error": {"only": {"conversation": "("}}}"#, "server_error.only.conversation"),
        (r#"{"parameters": {"statuses": [200]}}"#, "400 to 599"),
        (r#"{"parameters": {"latency_ms": [5, 1]}}"#, "latency_ms"),
    ] {
        let error = Faults::from_json(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn latency_stays_in_its_bounds_and_needs_no_rule() {
    let active = Active::new(Faults::none().parameters(|parameters| parameters.latency_ms = [3, 6]), 1);
    assert!(active.strikes(Kind::Latency, WRITE));
    assert!((0..100).all(|_| (3..=6).contains(&active.latency_ms())));
}
