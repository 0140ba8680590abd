//! The reference as a manual page, `aoai-lb.yaml(5)`.

use super::tree::read_tree;

const HEAD: &str = r#".TH AOAI-LB.YAML 5 "" "aoai-lb" "File Formats"
.SH NAME
aoai-lb.yaml \- the configuration of the load balancer aoai\-lb
.SH DESCRIPTION
One YAML document. Unknown keys are errors;
.B aoai\-lb check
reports every problem of a file at once.
.PP
Durations have a unit (250ms, 5s, 10m, 1h), and so have sizes (64KiB, 100MiB, 1GiB, 10MB). In values, ${NAME} is replaced by an
environment variable of the process or of the file
.I environment
beside the configuration, ${NAME:\-default} by a default if the variable is unset or empty, and ${file:/path} by the content
of a file without its last line break. $$ is a literal dollar sign. Relative paths start at the directory of the file.
.PP
Below, [] stands for each item of a list, and * for a name.
.SH KEYS
"#;

const TAIL: &str = r#".SH FILES
.TP
.I /etc/aoai\-lb/aoai\-lb.yaml
the configuration that commands read by default
.TP
.I /etc/aoai\-lb/environment
variables for it, in the syntax of
.BR EnvironmentFile =
in
.BR systemd.exec (5)
.TP
.I /usr/share/doc/aoai\-lb/examples/aoai\-lb.yaml
every key with its default
.SH EXAMPLES
One resource and one client:
.PP
.nf
listeners:
  \- address: 127.0.0.1:8080
backends:
  \- name: eastus
    endpoint: https://contoso\-eastus.openai.azure.com
    credential: { api_key: "${EASTUS_KEY}" }
clients:
  \- name: team\-a
    keys: [ { sha256: "${TEAM_A_SHA256}" } ]
.fi
.PP
.B aoai\-lb keys new team\-a
prints a key for the client and its hash.
.SH SEE ALSO
.BR aoai\-lb (8)
"#;

/// The page, in roff.
pub fn manual_page() -> String {
    let mut page = HEAD.to_owned();
    for key in read_tree().walk().into_iter().filter(|key| key.is_named()) {
        let default = key.comment.default.as_ref().map(|value| format!("Default: {value}."));
        let parts = [Some(key.value_in_words()), default, Some(key.comment.text.clone())];
        let parts: Vec<String> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
        page += &format!(".TP\n.B {}\n{}\n", escape(&key.path), escape(&parts.join("; ")));
    }
    roff_in_ascii(&(page + TAIL))
}

/// The page without characters beyond ASCII, which not every roff reads. Each becomes its escape.
pub fn roff_in_ascii(page: &str) -> String {
    let mut ascii = String::with_capacity(page.len());
    for character in page.chars() {
        match character {
            _ if character.is_ascii() => ascii.push(character),
            // Not every device has it.
            '…' => ascii.push_str("\\&..."),
            _ => ascii.push_str(&format!("\\[u{:04X}]", u32::from(character))),
        }
    }
    ascii
}

/// The text as roff shows it as it is: no character begins a request or an escape.
fn escape(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}
