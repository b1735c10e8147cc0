//! `cargo xtask doctor`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use lab::cache::Cache;
use lab::doctor::{self, Weight};

use crate::cli::DoctorArgs;
use crate::workspace::say;

/// Prints what was found; fails when a lab cannot run.
pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let findings = doctor::judge(&doctor::facts(&Cache::open()?)?);
    if args.json {
        let text = serde_json::to_string_pretty(&findings).context("writing the findings")?;
        say(&format!("{text}\n"));
    } else {
        for finding in &findings {
            let mark = match finding.weight {
                Weight::Fine => "ok    ",
                Weight::Limits => "limits",
                Weight::Blocks => "BLOCKS",
            };
            say(&format!(
                "{mark}  {:<20} {}\n",
                finding.subject, finding.found
            ));
            if !finding.advice.is_empty() {
                say(&format!("        hint: {}\n", finding.advice));
            }
        }
        say(verdict(&findings));
    }
    let blocked = findings
        .iter()
        .any(|finding| finding.weight == Weight::Blocks);
    Ok(if blocked {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn verdict(findings: &[doctor::Finding]) -> &'static str {
    let any = |weight| findings.iter().any(|finding| finding.weight == weight);
    if any(Weight::Blocks) {
        "\nNothing can be proven here until what BLOCKS is mended.\n"
    } else if any(Weight::Limits) {
        "\nNetwork policies can be proven here; see above for what is limited.\n\
         Never here: L7 (HTTP) policy rules, because no Envoy can be built from the package registries.\n"
    } else {
        "\nNetwork policies on layers 3 and 4 and by DNS name can be proven here.\n\
         Never here: L7 (HTTP) policy rules, because no Envoy can be built from the package registries.\n"
    }
}
