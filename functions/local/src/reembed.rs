//! Moving the memories to the configured embedding model.

use std::{io::IsTerminal as _, process::ExitCode, sync::Arc};

use agent_service::{
    composition::build_embedder,
    config::Config,
    memory::{MemoryEngine, ReembedProgress},
    postgres::Database,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{CommandResult, options::ReembedArguments};

/// Gives every memory a vector of the configured model.
pub async fn run(config: Config, arguments: ReembedArguments) -> CommandResult {
    let database = Database::from_config(&config.stores.database)?;
    let embedder = build_embedder(&config.embedding)?;
    let (name, dimension) = (embedder.model().name.clone(), embedder.model().dimension);
    let _opened = database.open(Arc::new(|_| {})).await?;
    let engine = MemoryEngine::new(config.memory, database.pools(), embedder);

    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} memories, {per_sec}, {eta} left")?);
    let progress = |at: ReembedProgress| {
        bar.set_length(at.total);
        bar.set_position(at.done);
    };
    let done = engine.reembed(&progress).await;
    bar.finish_and_clear();
    let done = done.map_err(|error| format!("{error}\nRun the same command again: it goes on where it stopped."))?;
    println!("{} memories have got vectors of {name} ({dimension} dimensions).", done.done);
    let mut code = ExitCode::SUCCESS;
    // Counted last of all: somebody may have written with another model meanwhile.
    let missing = engine.count_missing_vectors().await?;
    // What was refused is so again: a further run would come to the same, and must not be what everything waits for.
    let unasked = missing.saturating_sub(done.rejected);
    if missing > 0 {
        let refused = if done.rejected > 0 {
            format!("; the model refused the texts of {}", done.rejected)
        } else {
            String::new()
        };
        eprintln!("{missing} memories are without{refused}. They are found by their words.");
    }
    if unasked > 0 {
        code = ExitCode::FAILURE;
    }
    if arguments.prune && unasked > 0 {
        eprintln!(
            "error: the vectors of other models are kept, because {unasked} of these can still have one: run it again."
        );
    } else if arguments.prune {
        println!("{} vectors of other models are forgotten.", engine.delete_other_models().await?);
    }
    engine.build_vector_index(&database).await?;
    Ok(code)
}
