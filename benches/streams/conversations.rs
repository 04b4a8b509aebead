//! What it costs that conversations are kept: the same turns through a service that keeps them and through one that does not.

use std::time::Duration;

use tokio::{runtime::Runtime, time::timeout};

use crate::{
    LOG_LEVEL, Outcome,
    process::ServerProcess,
    provider::{DELTAS, PACE, PATIENCE, Plan, Seen, proxied_round},
    report::{number, quantile},
    server::Role,
};

/// Measures both in turn and prints what keeping adds.
pub fn run(runtime: &Runtime, plan: &Plan) -> Outcome<()> {
    let provider = ServerProcess::start(Role::Provider, PACE, &[], LOG_LEVEL)?;
    let start = |role| ServerProcess::start_with(role, Duration::ZERO, &[], LOG_LEVEL, &[provider.address()]);
    let (off, on) = (start(Role::Proxy)?, start(Role::Keeper)?);
    let store = std::env::var("CONVERSATIONS").unwrap_or_else(|_| "embedded Postgres".to_owned());
    println!("\nConversations kept ({store}) or not: {DELTAS} deltas, one every {PACE:?}, {} rounds", plan.rounds);
    println!("{:>8}  {:<28}{:>12}{:>12}{:>12}", "streams", "ms", "not kept", "kept", "added");
    for &streams in plan.streams {
        let (mut without, mut with) = (Seen::default(), Seen::default());
        runtime.block_on(async {
            // The first round opens the connections.
            for round in 0..=plan.rounds {
                let one = timeout(PATIENCE, proxied_round(off.address(), streams)).await??;
                let other = timeout(PATIENCE, proxied_round(on.address(), streams)).await??;
                if round > 0 {
                    without.add(one);
                    with.add(other);
                }
            }
            Outcome::Ok(())
        })?;
        let mut row = |what, of: fn(&mut Seen) -> &mut Vec<f64>, share| {
            let (without, with) = (quantile(of(&mut without), share), quantile(of(&mut with), share));
            println!(
                "{streams:>8}  {what:<28}{:>12}{:>12}{:>12}",
                number(without),
                number(with),
                number(with - without)
            );
        };
        row("to the first frame, p50", |seen| &mut seen.first_frames, 0.5);
        row("to the first frame, p99", |seen| &mut seen.first_frames, 0.99);
        row("of a delta, p50", |seen| &mut seen.lateness, 0.5);
        row("of a delta, p99", |seen| &mut seen.lateness, 0.99);
    }
    Ok(())
}
