//! Whatever is imported, the result passes the check of configurations, and no secret is in it.

use std::path::Path;

use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

use super::*;
use crate::config::parse_and_check_yaml;

const SEEDS: [&str; 6] = [
    include_str!("../../tests/integration/import_apim/cached-counter.xml"),
    include_str!("../../tests/integration/import_apim/priority-list.xml"),
    include_str!("../../tests/integration/import_apim/pool.xml"),
    include_str!("../../tests/integration/import_apim/clients.xml"),
    include_str!("../../tests/integration/import_apim/including.xml"),
    include_str!("../../tests/integration/import_apim/frag-backend-key.xml"),
];
const BACKENDS: &str = include_str!("../../tests/integration/import_apim/pool.json");

fn file(name: &str, bytes: impl Into<Vec<u8>>) -> InputFile {
    InputFile { name: name.to_owned(), bytes: bytes.into() }
}

fn import_one(text: &str) -> Result<Imported, String> {
    import(&[file("p.xml", text)], &[]).map_err(|error| error.to_string())
}

/// A policy with these statements in its section `inbound`.
fn inbound(statements: &str) -> String {
    format!("<policies><inbound>{statements}</inbound></policies>")
}

/// What is wrong with the result, with its variables set as their comments say.
fn problems(imported: &Imported) -> Option<String> {
    let value = |index: usize, kind: &str| match kind {
        "a URL" => format!("https://host-{index}.openai.azure.com"),
        "a SHA-256" => format!("{:064x}", index + 1),
        "an id" => format!("00000000-0000-0000-0000-{index:012}"),
        "a version" => "2024-10-21".to_owned(),
        "a number" => "1000".to_owned(),
        _ => format!("value-{index}"),
    };
    let env = |name: &str| {
        let index = imported.variables.iter().position(|(known, _)| known == name)?;
        Some(value(index, imported.variables[index].1))
    };
    let checked = parse_and_check_yaml(&imported.yaml, Path::new("/nonexistent"), &env);
    checked.err().map(|error| format!("{error}\n{}", imported.yaml))
}

fn assert_passes_check(imported: &Imported) {
    assert_eq!(problems(imported), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn mutated_policies_give_an_error_or_a_valid_configuration(
        seed in 0..SEEDS.len(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize, prop::sample::select(vec![
            "", "<", ">", "\"", "'", "&", "@(", "@{", ")", "}", "{{x}}", "{{", "}}", "\r\n", "#", ": ", "$", "${X}", "$$",
            "<!--", "-->", "<choose>", "</when>", "429", "-1", "99999999999999999999", "https://a.b", "*", "é", "\u{2028}",
            " ", "gpt-4o", "\u{1}", "&quot;", "0", "backend-id=\"x\"",
        ])), 0..6),
    ) {
        let mut text = SEEDS[seed].as_bytes().to_vec();
        for (index, removed, inserted) in edits {
            let at = index.index(text.len());
            let end = (at + removed).min(text.len());
            text.splice(at..end, inserted.bytes());
        }
        if let Ok(imported) = import(&[file("p.xml", text)], &[file("b.json", BACKENDS)]) {
            prop_assert_eq!(problems(&imported), None);
        }
    }

    #[test]
    fn mutated_backends_give_an_error_or_a_valid_configuration(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..9_usize, prop::sample::select(vec![
            "", "\"", "{", "}", "[", "]", ",", "0", "-1", "1000000000", "null", "\\n", "[parameters('apim')]", "x", "PT0S",
        ])), 0..4),
    ) {
        let mut text = BACKENDS.as_bytes().to_vec();
        for (index, removed, inserted) in edits {
            let at = index.index(text.len());
            let end = (at + removed).min(text.len());
            text.splice(at..end, inserted.bytes());
        }
        if let Ok(imported) = import(&[file("p.xml", SEEDS[2])], &[file("b.json", text)]) {
            prop_assert_eq!(problems(&imported), None);
        }
    }

    #[test]
    fn any_text_in_attributes_stays_within_its_value(text in "\\PC{0,40}", name in "[a-z-]{1,20}") {
        let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
        for statement in [
            format!("<set-backend-service backend-id=\"{escaped}\"/>"),
            format!("<set-backend-service base-url=\"https://{escaped}\"/>"),
            format!("<set-header name=\"{name}\"><value>{escaped}</value></set-header>"),
            format!("<set-header name=\"accept\"><value>{escaped}</value></set-header>"),
            format!("<set-variable name=\"{escaped}\" value=\"x\"/>"),
            format!("<include-fragment fragment-id=\"{escaped}\"/>"),
            format!("<authentication-managed-identity client-id=\"{escaped}\"/>"),
            format!("<validate-azure-ad-token tenant-id=\"{escaped}\"><audiences><audience>{escaped}</audience></audiences>\
                     </validate-azure-ad-token>"),
        ] {
            if let Ok(imported) = import_one(&inbound(&statement)) {
                prop_assert_eq!(problems(&imported), None, "{}", statement);
            }
        }
    }
}

#[test]
fn all_seeds_pass_check() {
    for seed in SEEDS {
        assert_passes_check(&import_one(seed).unwrap());
    }
    assert_passes_check(&import(&[file("p.xml", SEEDS[2])], &[file("b.json", BACKENDS)]).unwrap());
    // All together, with a file name that would end a comment.
    let files: Vec<_> = SEEDS.iter().map(|seed| file("a\nadmin: { address: x }\r.xml", *seed)).collect();
    let imported = import(&files, &[file("b\u{2028}.json", BACKENDS)]).unwrap();
    assert_passes_check(&imported);
    assert!(!imported.yaml.contains("\nadmin: {"));
}

#[test]
fn a_comment_never_becomes_configuration() {
    let evil = "x&#13;admin: { address: 0.0.0.0:1 }&#10;clients: open&#x2028;clients: open";
    let statements = format!(
        "<set-variable name=\"{evil}\" value=\"{evil}\"/><include-fragment fragment-id=\"{evil}\"/>\
         <set-backend-service backend-id=\"{evil}\"/><choose><when condition=\"{evil}\"><set-body/></when></choose>"
    );
    let imported = import_one(&inbound(&statements)).unwrap();
    assert_passes_check(&imported);
    for line in imported.yaml.lines().map(str::trim_start).filter(|line| line.contains("open")) {
        assert!(line.starts_with('#') || line.contains('"'), "{line}");
    }
    assert!(!imported.yaml.contains(['\r', '\u{2028}']));
}

#[test]
fn secrets_in_clear_are_not_repeated() {
    const SECRET: &str = "Hush5ecretHush";
    let statements = format!(
        "<set-backend-service base-url=\"https://u:{SECRET}@a.b/x?sig={SECRET}\"/>\
         <set-header name=\"api-key\"><value>{SECRET}</value></set-header>\
         <set-header name=\"Authorization\"><value>Bearer {SECRET}</value></set-header>\
         <set-header name=\"x-functions-key\"><value>{SECRET}</value></set-header>\
         <set-header name=\"x-{SECRET}=\"><value>v</value></set-header>\
         <set-query-parameter name=\"sig\"><value>{SECRET}</value></set-query-parameter>\
         <set-query-parameter name=\"api-version\"><value>{SECRET}</value></set-query-parameter>\
         <set-variable name=\"k\" value=\"{SECRET}\"/>\
         <set-variable name=\"l\" value=\"@{{ l.Add(new JObject() {{ {{ &quot;url&quot;, &quot;https://b.c/?k={SECRET}&quot; }}, \
         {{ &quot;api-key&quot;, &quot;{SECRET}&quot; }} }}); }}\"/>\
         <choose><when condition=\"@(context.Request.Headers[&quot;x&quot;] == &quot;{SECRET}&quot;)\"><set-body>{SECRET}</set-body>\
         </when></choose><return-response>{SECRET}</return-response>\
         <retry condition=\"@(x == &quot;{SECRET}&quot;)\" count=\"{SECRET}\"/>\
         <cache-lookup-value key=\"{SECRET}=\" variable-name=\"v\"/>\
         <rate-limit calls=\"{SECRET}\" renewal-period=\"{SECRET}\"/>"
    );
    let backends = format!(
        "[{{ \"name\": \"x\", \"properties\": {{ \"url\": \"https://{SECRET}@c.d\", \"credentials\": {{ \"header\": \
         {{ \"api-key\": [\"{SECRET}\"] }} }} }} }}]"
    );
    let imported =
        import(&[file("p.xml", inbound(&statements))], &[file("b.json", backends.clone())]).unwrap();
    assert!(!imported.yaml.to_ascii_lowercase().contains(&SECRET.to_ascii_lowercase()), "{}", imported.yaml);
    assert_passes_check(&imported);
    let imported = import(&[file("p.xml", inbound(""))], &[file("b.json", backends)]).unwrap();
    assert!(!imported.yaml.to_ascii_lowercase().contains(&SECRET.to_ascii_lowercase()), "{}", imported.yaml);
    assert!(imported.yaml.contains("the key in plain text"), "{}", imported.yaml);
}

#[test]
fn each_statement_is_configuration_implied_or_a_comment_with_its_line() {
    let imported = import_one(
        "<policies><inbound>\n<base/>\n<cors/>\n<strange-policy/>\n<set-backend-service base-url=\"https://a.b\"/>\n\
         <send-request><set-url>x</set-url></send-request>\n</inbound></policies>",
    )
    .unwrap();
    assert_eq!(imported.counts, Counts { mapped: 1, implied: 1, left: 3 });
    for part in
        ["# p.xml:3: cors: ", "# p.xml:4: strange-policy: no counterpart", "# p.xml:6: send-request: "]
    {
        assert!(imported.yaml.contains(part), "{part}\n{}", imported.yaml);
    }
}

/// The lines of backends that have names, tiers and so on, without comments.
fn backend_lines(text: &str) -> Vec<String> {
    let imported = import_one(text).unwrap();
    assert_passes_check(&imported);
    let lines = imported.yaml.lines().skip_while(|line| *line != "backends:").skip(1);
    let lines =
        lines.take_while(|line| !line.is_empty()).map(str::trim).filter(|line| !line.starts_with('#'));
    lines.filter(|line| !line.starts_with("endpoint")).map(str::to_owned).collect()
}

#[test]
fn keys_are_found_by_branch_condition_and_variable() {
    let when = |inside: &str| {
        format!("<choose><when condition=\"@((string)context.Variables[\"c\"] == \"blue\")\">{inside}</when>")
    };
    let otherwise = |inside: &str| format!("<otherwise>{inside}</otherwise></choose>");
    let url = |name: &str| format!("<set-backend-service base-url=\"https://{name}.b\"/>");
    let key = |value: &str| format!("<set-header name=\"api-key\"><value>{value}</value></set-header>");
    let variable = |name: &str, value: &str| format!("<set-variable name=\"{name}\" value=\"{value}\"/>");
    let cached = "<cache-lookup-value key=\"c\" variable-name=\"c\"/>";
    let expected = [
        "- name: \"one\"",
        "credential: { api_key: \"${K1}\" }",
        "- name: \"two\"",
        "credential: { api_key: \"${K2}\" }",
    ];
    let by_branch = when(&(url("one") + &key("{{k1}}"))) + &otherwise(&(url("two") + &key("{{k2}}")));
    let by_condition =
        when(&url("one")) + &otherwise(&url("two")) + &when(&key("{{k1}}")) + &otherwise(&key("{{k2}}"));
    let by_variable = when(&(variable("u", "https://one.b") + &variable("k", "{{k1}}")))
        + &otherwise(&(variable("u", "https://two.b") + &variable("k", "{{k2}}")))
        + "<set-backend-service base-url=\"@((string)context.Variables[\"u\"])\"/>"
        + &key("@((string)context.Variables[\"k\"])");
    for statements in [by_branch, by_condition, by_variable] {
        assert_eq!(backend_lines(&inbound(&format!("{cached}{statements}"))), expected, "{statements}");
    }
}

#[test]
fn conditions_decide_tiers_deployments_and_whether_a_backend_is_enabled() {
    let url = |name: &str| format!("<set-backend-service base-url=\"https://{name}.b\"/>");
    let choose = |condition: &str, inside: &str, otherwise: &str| {
        format!(
            "<choose><when condition=\"@({condition})\">{}</when><otherwise>{}</otherwise></choose>",
            url(inside),
            url(otherwise)
        )
    };
    for (condition, expected) in [
        ("context.Response.StatusCode == 429", &["- name: \"a\"", "tier: 2", "- name: \"b\""][..]),
        (
            "context.Request.MatchedParameters[\"deployment-id\"] == \"o3\"",
            &["- name: \"a\"", "deployments:", "\"o3\": \"o3\"", "- name: \"b-others\"", "tier: 2"],
        ),
        ("new Random().Next(2) == 1", &["- name: \"a\"", "- name: \"b\""]),
        ("context.User.Id == \"x\"", &["- name: \"a\"", "enabled: false", "- name: \"b\""]),
    ] {
        let lines = backend_lines(&inbound(&choose(condition, "a", "b")));
        let lines: Vec<_> = lines.iter().filter(|line| !line.starts_with("credential")).collect();
        assert_eq!(lines, expected.iter().collect::<Vec<_>>(), "{condition}");
    }
    // If there is no other backend, it is enabled.
    let only =
        format!("<choose><when condition=\"@(context.User.Id == \"x\")\">{}</when></choose>", url("a"));
    assert!(!backend_lines(&inbound(&only)).contains(&"enabled: false".to_owned()));
}

#[test]
fn fragments_may_be_included_often_but_not_by_themselves() {
    let policy = file("p.xml", inbound("<include-fragment fragment-id=\"a\"/>"));
    let fragment = |name: &str, of: &str| {
        let include = format!("<include-fragment fragment-id=\"{of}\"/>");
        file(&format!("{name}.xml"), format!("<fragment>{}</fragment>", include.repeat(9)))
    };
    let error = |files: &[InputFile]| import(files, &[]).err().map(|error| error.to_string());
    assert_eq!(
        error(&[policy.clone(), fragment("a", "b"), fragment("b", "a")]).as_deref(),
        Some("b.xml:1: a fragment includes itself")
    );
    // Nine times nine times nine …
    let bomb: Vec<_> = std::iter::once(policy)
        .chain(["ab", "bc", "cd", "de", "ef", "fg"].map(|pair| fragment(&pair[..1], &pair[1..])))
        .collect();
    let expected = "there are more than 20000 statements, with what fragments repeat";
    assert!(error(&bomb).is_some_and(|error| error.contains(expected)));
}

/// A list of endpoints as policies keep it in a variable and in the cache.
fn cached_list(list: &str) -> String {
    format!(
        "<cache-lookup-value key='l' variable-name='l'/><choose><when condition='@(!context.Variables.ContainsKey(\"l\"))'>\
         <set-variable name='l' value='@{{ JArray l = new JArray(); {list} return l; }}'/>\
         <cache-store-value key='l' value='@((JArray)context.Variables[\"l\"])' duration='60'/></when></choose>"
    )
}

#[test]
fn a_list_that_is_filled_when_it_is_not_cached_is_no_condition() {
    let entry = |name: &str, priority: u8| {
        format!(
            "l.Add(new JObject() {{ {{ \"url\", \"https://{name}.b\" }}, {{ \"priorityGroup\", {priority} }} }});"
        )
    };
    let policy = cached_list(&(entry("a", 1) + &entry("c", 2)))
        + "<set-backend-service base-url='@(((JArray)context.Variables[\"l\"])[0].Value<string>(\"url\"))'/>";
    let imported = import_one(&inbound(&policy)).unwrap();
    assert_passes_check(&imported);
    assert!(!imported.yaml.contains("condition"), "{}", imported.yaml);
    assert!(!imported.yaml.contains("Without a counterpart"), "{}", imported.yaml);
    let lines = backend_lines(&inbound(&policy));
    let lines: Vec<_> = lines.iter().filter(|line| !line.starts_with("credential")).collect();
    assert_eq!(lines, ["- name: \"a\"", "- name: \"c\"", "tier: 2"]);
}

#[test]
fn an_endpoint_that_no_cluster_has_is_not_enabled() {
    let list = "routes.Add(new JObject() { { \"url\", \"https://a.b\" } }); routes.Add(new JObject() { { \"url\", \
                \"https://c.d\" } }); l.Add(new JObject() { { \"deploymentName\", \"o3\" }, { \"routes\", new \
                JArray(routes[0]) } });";
    let lines = backend_lines(&inbound(&cached_list(list)));
    let lines: Vec<_> = lines.iter().filter(|line| !line.starts_with("credential")).collect();
    assert_eq!(lines, ["- name: \"a\"", "deployments:", "\"o3\": \"o3\"", "- name: \"c\"", "enabled: false"]);
    // The list becomes configuration even without `set-backend-service`, which may be in a fragment that is not given.
    let imported = import_one(&inbound(&cached_list(list))).unwrap();
    assert_eq!(imported.counts.left, 0, "{}", imported.yaml);
}

#[test]
fn pools_by_model_become_backends_and_errors_do_not() {
    let policy = "<set-variable name='pools' value='@{ JArray pools = new JArray(); var one = new JObject() { { \"poolName\", \
                  \"one\" }, { \"supportedModels\", new JArray(\"gpt-4o\", \"o3\") } }; pools.Add(one); return pools; }'/>\
                  <set-variable name='pool' value='@{ var pools = (JArray)context.Variables[\"pools\"]; if (pools.Count == 0) \
                  { return \"ERROR_NO_MODEL\"; } return pools[0][\"poolName\"].ToString(); }'/>\
                  <set-backend-service backend-id='@((string)context.Variables[\"pool\"])'/>";
    let lines = backend_lines(&inbound(policy));
    let lines: Vec<_> = lines.iter().filter(|line| !line.starts_with("credential")).collect();
    assert_eq!(lines, ["- name: \"one\"", "deployments:", "\"gpt-4o\": \"gpt-4o\"", "\"o3\": \"o3\""]);
}

#[test]
fn one_backend_of_api_management_has_one_variable() {
    let choose = "<choose><when condition='@(context.Request.MatchedParameters[\"deployment-id\"] == \"o3\")'>\
                  <set-backend-service backend-id='east'/></when><otherwise><set-backend-service backend-id='east'/>\
                  </otherwise></choose>";
    let imported = import_one(&inbound(choose)).unwrap();
    assert_passes_check(&imported);
    let endpoints: Vec<_> = imported.variables.iter().filter(|(_, kind)| *kind == "a URL").collect();
    assert_eq!(endpoints, [&("EAST_ENDPOINT".to_owned(), "a URL")]);
    assert_eq!(imported.yaml.matches("endpoint: \"${EAST_ENDPOINT}\"").count(), 2, "{}", imported.yaml);
}

#[test]
fn a_list_in_a_named_value_is_no_backend_with_that_id() {
    let policy = "<set-variable name='config' value='{{lb-config}}'/><set-variable name='l' value='@{ var all = \
                  JArray.Parse((string)context.Variables[\"config\"]); return all; }'/>\
                  <set-backend-service backend-id='@(((JArray)context.Variables[\"l\"])[0].Value<string>(\"name\"))'/>";
    let imported = import_one(&inbound(policy)).unwrap();
    assert_passes_check(&imported);
    let yaml = imported.yaml.replace("\n  # ", " ");
    assert!(yaml.contains("p.xml:1: the policy reads a list of backends from this named value"), "{yaml}");
    assert!(!yaml.contains("by its id"), "{yaml}");
}

#[test]
fn limits_under_a_condition_on_deployments_are_those_of_the_deployments() {
    let limit = |key: &str, tokens: u32| {
        format!(
            "<llm-token-limit counter-key='@({key})' tokens-per-minute='{tokens}' token-quota='9000' token-quota-period='Monthly'/>"
        )
    };
    let of = "context.Subscription.Id + context.Request.MatchedParameters[\"deployment-id\"]";
    let policy = format!(
        "<choose><when condition='@((string)context.Variables[\"deployment\"] == \"gpt-4o\")'>{}</when>\n\
         <when condition='@((string)context.Variables[\"deployment\"] == \"o3\")'>{}</when>\n<otherwise>{}</otherwise></choose>\n{}",
        limit(of, 1000),
        limit("context.Subscription.Id", 500),
        limit("context.Subscription.Id", 10),
        limit("context.Subscription.Id", 2000)
    );
    let imported = import_one(&inbound(&policy)).unwrap();
    assert_passes_check(&imported);
    let expected = "limits:
  default:
    tokens_per_minute: 2000
    tokens_per_month: 9000
    deployments:
      \"gpt-4o\":
        tokens_per_minute: 1000
        tokens_per_month: 9000
      \"o3\":
        tokens_per_minute: 500
        tokens_per_month: 9000
";
    assert!(imported.yaml.contains(expected), "{}", imported.yaml);
    assert!(
        imported.yaml.contains("# p.xml:3: llm-token-limit: a limit for all other deployments"),
        "{}",
        imported.yaml
    );
    assert!(!imported.yaml.contains("only under a condition"), "{}", imported.yaml);
}

#[test]
fn backends_that_a_template_makes_in_a_loop_are_named() {
    let backends = "{ \"resources\": [ { \"copy\": { \"name\": \"b\", \"count\": 2 }, \"type\": \
                    \"Microsoft.ApiManagement/service/backends\", \"name\": \"[parameters('names')[copyIndex()]]\", \
                    \"properties\": { \"url\": \"[concat('https://', parameters('names')[copyIndex()])]\" } },\n\
                    { \"type\": \"Microsoft.ApiManagement/service/backends\", \"name\": \"apim/pool\", \"properties\": { \
                    \"pool\": { \"copy\": [ { \"name\": \"services\", \"count\": 2, \"input\": {} } ] } } } ] }";
    let policy = inbound("<set-backend-service backend-id='pool'/>");
    let imported = import(&[file("p.xml", policy)], &[file("b.json", backends)]).unwrap();
    assert_passes_check(&imported);
    assert!(
        imported.yaml.contains("# b.json:1, b.json:2: a loop of the template makes"),
        "{}",
        imported.yaml
    );
    assert!(imported.yaml.contains("endpoint: \"${POOL_ENDPOINT}\""), "{}", imported.yaml);
}

#[test]
fn large_inputs_take_linear_time() {
    const SIZE: usize = 1 << 20;
    let many = |text: &str| text.repeat(SIZE / text.len());
    let inputs = [
        many("<"),
        many("<a "),
        many("<a b=\""),
        format!("<policies>{}", many("<!-- ")),
        format!("<policies a=\"@({}", many("(")),
        format!("<policies a=\"@({}", many("\"'")),
        format!("<policies a=\"@({}", many("/*")),
        format!("<policies a=\"@({})\"/>", many("x &amp; ")),
        format!("<policies a=\"{}\"/>", many("&")),
        format!("<policies a=\"{}\"/>", many("&lt;")),
        inbound(&many("&x")),
        inbound(&many("x < y ")),
        inbound(&many("<a b='@(c)'/>")),
        inbound(&many("<set-backend-service backend-id='x'/>").chars().take(37 * 19_000).collect::<String>()),
        inbound(&format!(
            "<set-variable name='a' value='@({})'/>",
            many("new JObject() { { \"url\", \"https://a.b\" } } ")
        )),
        inbound(&format!(
            "<choose><when condition='@({})'><base/></when></choose>",
            many("context.Variables[\"a\"] == 1 || ")
        )),
        // Long lists under a condition with many names.
        inbound(&format!(
            "<choose><when condition='@(new [] {{ {} }}.Contains(context.Variables[\"model\"]))'>\
             <set-variable name='a' value='@({})'/></when></choose>",
            (0..40_000).map(|n| format!("\"m{n}\",")).collect::<String>(),
            many("new JObject() { { \"url\", \"https://a.b\" } } ").chars().take(200_000).collect::<String>()
        )),
        // Variables that are made of each other.
        inbound(
            &(0..10_000)
                .map(|n| {
                    format!(
                        "<set-variable name='v{n}' value='@(context.Variables[\"v{}\"])'/>",
                        (n + 1) % 10_000
                    )
                })
                .collect::<String>(),
        ),
        inbound(&format!("<a {}/>", many("b='' "))),
        many("\n<policies>"),
    ];
    for text in &inputs {
        let used = || clock_gettime(ClockId::ThreadCPUTime).tv_sec;
        let start = used();
        if let Ok(imported) = import_one(text) {
            assert_passes_check(&imported);
        }
        // Without optimization. What takes the square of a megabyte takes hours.
        assert!(used() - start < 20, "{}", &text[..60]);
    }
}
