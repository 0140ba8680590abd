//! The manual page `aoai-lb(8)`, for the package.

use std::io::{self, Write};

use clap::Command;
use clap_mangen::Man;

use crate::config;

/// The title, and how roff shows an apostrophe. clap_mangen takes the version for a date.
const TITLE: &str = concat!(
    ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n",
    ".TH AOAI\\-LB 8 \"\" \"aoai\\-lb ",
    env!("CARGO_PKG_VERSION"),
    "\" \"System Administration\"\n"
);

/// What the options do not say.
const FURTHER_SECTIONS: &str = r#".SH SIGNALS
To the running process:
.TP
SIGTERM
Stop: readiness fails, the listeners stay open for \fBserver.drain_delay\fR, and the process exits as soon as no request is in flight,
at the latest after \fBserver.grace_period\fR.
.TP
SIGINT
Stop at once.
.TP
SIGHUP
Read the configuration again, and begin a new file of records.
.TP
SIGUSR1
Open the file of records again, after another program has renamed it.
.TP
SIGUSR2
Start the installed binary with the installed configuration, and hand over to it.
.PP
SIGQUIT is ignored.
.SH FILES
.TP
.I /etc/aoai\-lb/aoai\-lb.yaml
the configuration, see
.BR aoai\-lb.yaml (5)
.TP
.I /etc/aoai\-lb/environment
variables for it
.TP
.I /var/lib/aoai\-lb
what outlives a restart: drains, where stored objects are, budgets, and records that are not delivered yet
.TP
.I /var/log/aoai\-lb/exchanges.jsonl
a line of JSON for each request
.TP
.I /run/aoai\-lb/upgrade.sock
the socket of upgrades; beside it, records that are not in a file yet
.SH ENVIRONMENT
.TP
RUST_LOG
what is logged, such as \fBwarn,aoai_lb=info,access=info\fR for a line per request
.TP
NO_COLOR
no colors on a terminal
.TP
SSL_CERT_FILE, SSL_CERT_DIR
certificates of authorities to trust in place of those of the system
.TP
AZURE_POD_IDENTITY_AUTHORITY_HOST
an address to use in place of the metadata service of the virtual machine
.TP
IDENTITY_ENDPOINT, IDENTITY_HEADER
the managed identity of App Service and Container Apps
.TP
AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_FEDERATED_TOKEN_FILE, AZURE_AUTHORITY_HOST
the workload identity of a Kubernetes cluster
.SH EXIT STATUS
.TP
0
success
.TP
1
failure; for \fBcheck\fR, errors in the file
.TP
2
wrong usage
.TP
3
\fBstatus \-\-check\fR: the service is neither healthy nor spilling
.TP
128 and the number of the signal
\fBstatus \-\-watch\fR: a signal has ended it
.SH EXAMPLES
.nf
aoai\-lb check \-\-live
aoai\-lb explain POST /openai/v1/responses \-\-model gpt\-4o \-\-client team\-a
aoai\-lb status \-\-watch
aoai\-lb usage \-\-by client,deployment \-\-since 7d
.fi
.SH SEE ALSO
.BR aoai\-lb.yaml (5),
.BR systemctl (1),
.BR journalctl (1)
.PP
.I /usr/share/doc/aoai\-lb
"#;

/// Prints the page. All commands are in it.
pub(super) fn print_manual_page(command: &Command) -> io::Result<()> {
    let man = Man::new(command.clone()).section("8");
    let mut page = TITLE.as_bytes().to_vec();
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    writeln!(page, ".SH COMMANDS")?;
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        render_command(command, &mut page)?;
    }
    page.extend_from_slice(FURTHER_SECTIONS.as_bytes());
    io::stdout().write_all(config::roff_in_ascii(&String::from_utf8_lossy(&page)).as_bytes())
}

/// A command with its options, as a subsection.
fn render_command(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    writeln!(page, ".SS {}\n{}.", command.get_name(), about.trim_end_matches('.'))?;
    let mut options = Vec::new();
    Man::new(command.clone()).render_options_section(&mut options)?;
    // Two breaks around an empty line are a paragraph.
    let options =
        String::from_utf8_lossy(&options).replace(".SH OPTIONS\n", "").replace(".br\n\n.br\n", ".sp\n");
    page.extend_from_slice(options.as_bytes());
    Ok(())
}
