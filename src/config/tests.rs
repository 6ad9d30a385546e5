use super::*;

const BOT: &str = r#"
[bots.default]
base_url = "https://bot.example.com"
client_id = "id"
client_secret = "sesame"
"#;

fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Config, Error> {
    Config::parse(text, variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn refusal(text: &str, variables: &[(&str, &str)]) -> String {
    parse(text, variables).expect_err("the settings are wrong").to_string()
}

#[test]
fn the_shipped_defaults_are_the_design() {
    let config = parse(BOT, &[]).unwrap();
    let bot = &config.bots["default"];
    assert_eq!(bot.token_url.as_str(), "https://bot.example.com/api/v1/auth/token");
    assert_eq!((bot.requests_per_second, bot.burst, bot.concurrency, bot.prefetch), (100, 5, 32, 128));
    assert_eq!((bot.max_value_bytes, bot.max_payload_bytes), (10_240, 524_288));
    assert_eq!(
        config.retry.schedule.iter().copied().map(show_duration).collect::<Vec<_>>(),
        ["5s", "30s", "2m", "10m"]
    );
    assert_eq!(config.relay.retry_schedule.len(), 9);
    assert!(bot.conversation_id_pattern.is_match("conv_8a7b9c2d1e3f"));
    assert!(!bot.conversation_id_pattern.is_match("conv_8a7b\n"));
}

#[test]
fn cognigy_v2_has_defaults_of_its_own_and_settings_that_are_its_own() {
    let v2 = BOT.replace("client_id", "dialect = \"cognigy-v2\"\nclient_id");
    let config = parse(&v2, &[]).unwrap();
    let bot = &config.bots["default"];
    assert_eq!((bot.requests_per_second, bot.max_payload_bytes, bot.max_value_bytes), (3, 60_000, 10_240));
    assert_eq!(bot.token_url.as_str(), "https://bot.example.com/auth/oauth2/token");
    assert!(config.show().contains("requests_per_second = 3\n"), "{}", config.show());
    let given = parse(&format!("{v2}requests_per_second = 50"), &[]).unwrap();
    assert_eq!(given.bots["default"].requests_per_second, 50);
    for (more, part) in [
        ("ledger = \"always\"", "bots.default.ledger: \"always\" is not possible with cognigy-v2"),
        ("conversation_id_pattern = '(?<usr>.+)'", "has a group \"usr\""),
        ("conversation_id_pattern = '(?<user>.+)'\nuser_id = \"u\"", "bots.default.user_id: is set together"),
        ("merge_semantics = \"some\"", "is not one of \"undeclared\", \"shallow\", \"deep\""),
    ] {
        let text = refusal(&format!("{v2}{more}"), &[]);
        assert!(text.contains(part), "{text}");
    }
    let text = refusal(&format!("{BOT}merge_semantics = \"deep\""), &[]);
    assert!(text.contains("belongs to the dialect cognigy-v2"), "{text}");
}

#[test]
fn environment_wins_over_the_file_and_makes_bots() {
    let config = parse(
        BOT,
        &[
            ("CONTEXT_INJECTOR__BOTS__DEFAULT__REQUESTS_PER_SECOND", "7"),
            ("CONTEXT_INJECTOR__BOTS__SECOND__BASE_URL", "https://second.example.com"),
            ("CONTEXT_INJECTOR__BOTS__SECOND__CLIENT_ID", "id"),
            ("CONTEXT_INJECTOR__BOTS__SECOND__CLIENT_SECRET", "12345"),
            ("AMQP_URL", "amqp://u:p@rabbit:5672/%2f"),
            ("HOME", "/root"),
        ],
    )
    .unwrap();
    assert_eq!(config.bots["default"].requests_per_second, 7);
    assert_eq!(config.bots["second"].client_secret.as_ref().unwrap().expose_secret(), "12345");
    assert_eq!(config.amqp.url.to_string(), "amqp://rabbit:5672");
}

#[test]
fn a_wrong_setting_is_named_with_its_value_and_what_is_allowed() {
    let text = refusal(&format!("{BOT}burst = 0\nconnect_timeout = \"soon\"\nledger = \"sometimes\""), &[]);
    assert!(text.contains("bots.default.burst: 0 is not a whole number from 1 to 10000"), "{text}");
    assert!(text.contains("bots.default.connect_timeout: \"soon\" is not a duration from 10ms to 1m"), "{text}");
    assert!(text.contains("bots.default.ledger: \"sometimes\" is not one of \"auto\", \"always\", \"off\""), "{text}");
}

#[test]
fn unknown_settings_are_refused_with_the_nearest_known_one() {
    let text = refusal(&format!("{BOT}brust = 5\n[relays]\n"), &[("CONTEXT_INJECTOR__REDIS__ULR", "x")]);
    assert!(text.contains("bots.default.brust: is not a setting; did you mean burst?"), "{text}");
    assert!(text.contains("relays: is not a setting; did you mean relay?"), "{text}");
    assert!(text.contains("CONTEXT_INJECTOR__REDIS__ULR: is not a setting; did you mean url?"), "{text}");
}

#[test]
fn a_base_url_with_the_path_or_in_clear_text_is_refused() {
    let text = refusal(&BOT.replace("https://bot.example.com", "http://bot.example.com/api/v1"), &[]);
    assert!(text.contains("holds /api/v1; leave it out"), "{text}");
    assert!(text.contains("set allow_http = true"), "{text}");
}

#[test]
fn secrets_are_never_shown() {
    let config = parse(&format!("{BOT}[redis]\nurl = \"redis://:hunter2@cache:6379/\""), &[]).unwrap();
    for shown in [config.show(), format!("{config:?}")] {
        assert!(!shown.contains("sesame") && !shown.contains("hunter2"), "{shown}");
    }
    let text = refusal(&format!("{BOT}[redis]\nurl = \"rediss//:hunter2@cache\""), &[]);
    assert!(!text.contains("hunter2"), "{text}");
    let text = refusal("[redis]\nurl = \"redis://:hunter2@cache\n", &[]);
    assert!(text.contains("line 2") && !text.contains("hunter2"), "{text}");
}

#[test]
fn secrets_come_from_files() {
    let dir = std::env::temp_dir().join(format!("context-injector-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("secret");
    std::fs::write(&file, "sesame\n").unwrap();
    let text = BOT.replace("client_secret = \"sesame\"", &format!("client_secret_file = {:?}", file));
    let config = parse(&text, &[]).unwrap();
    assert_eq!(config.bots["default"].client_secret.as_ref().unwrap().expose_secret(), "sesame");
    std::fs::remove_dir_all(&dir).unwrap();
    let text = refusal(&text, &[]);
    assert!(text.contains("bots.default.client_secret_file") && text.contains("cannot be read"), "{text}");
    let both = refusal(&format!("{BOT}client_secret_file = \"/x\""), &[]);
    assert!(both.contains("bots.default.client_secret: is set together with client_secret_file"), "{both}");
}

#[test]
fn names_that_our_own_queues_have_are_refused() {
    let text = refusal(&BOT.replace("bots.default", "bots.dead"), &[]);
    assert!(text.contains("bots.dead: the name dead is taken"), "{text}");
}

#[test]
fn what_is_shown_can_be_read_again() {
    let shown = parse(BOT, &[]).unwrap().show();
    let again = parse(&shown, &[]).unwrap();
    assert_eq!(again.show(), shown);
    assert!(shown.contains("amqp://127.0.0.1:5672"), "{shown}");
}

#[test]
fn order_needs_one_delivery_at_a_time() {
    let endpoint = "[endpoints.log]\nurl = \"https://log.example.com\"\nsecret = \"whsec_x\"\nordered = true\n";
    let text = refusal(&format!("{BOT}{endpoint}"), &[]);
    assert!(text.contains("endpoints.log.ordered: = true needs max_in_flight = 1 (it is 10)"), "{text}");
    assert!(parse(&format!("{BOT}{endpoint}max_in_flight = 1\n"), &[]).unwrap().endpoints["log"].ordered);
}

#[test]
fn endpoints_are_checked() {
    let endpoint = "[endpoints.crm]\nurl = \"http://crm.example.com/hook/t0ken\"\nsecret = \"whsec_x\"\nevents = [\"a.b.c\"]\nallow_networks = [\"10.0.0/8\"]\n";
    let text = refusal(&format!("{BOT}{endpoint}"), &[]);
    assert!(text.contains("endpoints.crm.url: http://crm.example.com/… begins with http://"), "{text}");
    assert!(text.contains("endpoints.crm.events: \"a.b.c\" can never match"), "{text}");
    assert!(text.contains("endpoints.crm.allow_networks: \"10.0.0/8\" is not a network"), "{text}");
    assert!(!text.contains("t0ken"), "{text}");
}

#[test]
fn bots_share_the_budget_of_a_source_that_exists() {
    let shared = format!("{BOT}source = \"cloud\"\n[sources.cloud]\nrequests = 500");
    let config = parse(&shared, &[]).unwrap();
    let source = &config.sources["cloud"];
    assert_eq!((config.bots["default"].source.as_str(), source.requests), ("cloud", 500));
    assert_eq!(source.per, Duration::from_secs(300), "the default of what is not said");
    assert!(parse(BOT, &[]).unwrap().sources.is_empty());
    let text = refusal(&format!("{BOT}source = \"clowd\"\n[sources.cloud]"), &[]);
    assert!(text.contains("bots.default.source: \"clowd\" is no source; add a section [sources.clowd]"), "{text}");
}

#[test]
fn the_settings_in_deploy_can_be_used() {
    let secrets = include_str!("../../deploy/kubernetes/secrets.env");
    let secrets = secrets.lines().filter_map(|line| line.split_once('=')).collect::<Vec<_>>();
    let config = parse(include_str!("../../deploy/kubernetes/settings.toml"), &secrets).unwrap();
    assert_eq!((config.amqp.url.to_string().as_str(), config.bots.len()), ("amqps://rabbitmq.example.com:5671", 1));
    let addresses = [("AMQP_URL", "amqp://rabbitmq"), ("REDIS_URL", "redis://redis")];
    parse(include_str!("../../deploy/compose/settings.toml"), &addresses).unwrap();
}
