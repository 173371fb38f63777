//! What holds for any command line: a known status, never a panic, nothing on stdout when it fails.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use common::weft_with;
use proptest::prelude::*;

/// Words that commands know, words that they nearly know, and anything.
fn word() -> impl Strategy<Value = String> {
    let known = [
        "topo",
        "plan",
        "--root",
        "--nics",
        "--buffers",
        "--policy",
        "--json",
        "--matrix",
        "--efa-only",
        "--pte-budget",
        "--max-mr",
        "--at-least",
        "8x1G@cpu:0/2M",
        "1G",
        "16",
        "0",
        "near",
        "all",
        "within 1s",
        "-1",
        "--",
        "",
        "@",
        "/",
        "1x1/4K",
        "--log",
        "off",
    ];
    prop_oneof![4 => prop::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => "[ -~]{0,12}"]
}

proptest! {
    // Each case is a process.
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_command_line_ends_with_a_status_of_the_manual(
        command in prop::sample::select(vec!["topo", "plan"]), words in prop::collection::vec(word(), 0..7),
    ) {
        let run = weft_with([command.to_owned()].into_iter().chain(words));
        prop_assert!((0..=3).contains(&run.status), "{run:?}");
        prop_assert!(!run.stderr.contains("panicked"), "{run:?}");
        prop_assert_eq!(run.stderr.is_empty(), run.status == 0, "{:?}", run);
        prop_assert!(run.status == 0 || run.stdout.is_empty(), "{run:?}");
    }

    /// A plan never promises more than the cards have, and covers every byte.
    #[test]
    fn any_plan_covers_its_buffers_within_the_budgets(
        nics in 1_u64..20, count in 1_u64..20, mib in 1_u64..4096, huge: bool, budget in 1_u64..4_000_000, policy in 1_usize..20,
    ) {
        let spec = format!("{count}x{mib}M@cpu:0/{}", if huge { "2M" } else { "4K" });
        let run = weft_with([
            "plan", "--nics", &nics.to_string(), "--buffers", &spec, "--pte-budget", &budget.to_string(),
            "--policy", &policy.to_string(), "--json",
        ]);
        if run.status == 2 {
            prop_assert!(run.stderr.contains("page table entries"), "{run:?}");
            return Ok(());
        }
        prop_assert_eq!(run.status, 0, "{:?}", run);
        let plan = run.json();
        let pieces = plan["pieces"].as_array().unwrap();
        let bytes: u64 = pieces.iter().map(|piece| piece["bytes"].as_u64().unwrap()).sum();
        prop_assert_eq!(bytes, (count * mib) << 20);
        for nic in 0..nics {
            let name = serde_json::json!(format!("nic{nic}"));
            let on = pieces.iter().filter(|piece| piece["nics"].as_array().unwrap().contains(&name));
            let pages: u64 = on.map(|piece| piece["pages"].as_u64().unwrap()).sum();
            prop_assert!(pages <= budget, "nic{nic} pays {pages} of {budget}");
        }
    }
}
