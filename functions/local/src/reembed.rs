//! `agent-local reembed`: computes the missing vectors of the configured embedding model.

use std::{io::IsTerminal as _, process::ExitCode, sync::Arc};

use agent_service::{
    composition::build_embedder,
    config::Config,
    memory::{MemoryEngine, ReembedProgress},
    postgres::Database,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{CommandResult, options::ReembedArguments};

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
    let done = Box::pin(engine.reembed(&progress)).await;
    bar.finish_and_clear();
    let done = done.map_err(|error| format!("{error}\nRun the same command again to resume."))?;
    println!("Computed vectors of {name} ({dimension} dimensions) for {} memories.", done.done);
    let mut code = ExitCode::SUCCESS;
    // Counted afterwards, because a server with another model may have written in the meantime.
    let missing = engine.count_missing_vectors().await?;
    // The model rejects the same texts in every run, so only the rest makes another run worthwhile.
    let retryable = missing.saturating_sub(done.rejected);
    if missing > 0 {
        let rejected = if done.rejected > 0 {
            format!("; the model rejected {} of their texts", done.rejected)
        } else {
            String::new()
        };
        eprintln!("{missing} memories have no vector{rejected}. Only lexical search finds them.");
    }
    if retryable > 0 {
        code = ExitCode::FAILURE;
    }
    if arguments.prune && retryable > 0 {
        eprintln!("error: vectors of other models are not deleted while {retryable} memories lack one: run it again.");
    } else if arguments.prune {
        println!("Deleted {} vectors of other models.", engine.delete_other_models().await?);
    }
    engine.build_vector_index(&database).await?;
    Ok(code)
}
