//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Streaming chat with long-term memory: a local server and a client for it.
///
/// Without a command it runs the server. Settings are environment variables or lines of a file `.env`;
/// docs/reference/configuration.md lists them. All are optional: by default the server gives canned answers (demo mode) and
/// runs an embedded Postgres.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Options {
    #[command(subcommand)]
    pub command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  agent-local                                  run the server on 127.0.0.1:50051
  agent-local chat \"帮我制定高数复习计划\"        send a message, in a second terminal
  agent-local remember \"I mix up eigenvalues and eigenvectors\"
  agent-local recall \"how do eigenvalues differ from eigenvectors?\"
  agent-local import notes/ book.md chat.jsonl  import files into the memory";

pub const DEFAULT_ADDR: &str = "http://127.0.0.1:50051";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server (the default command)
    Serve,
    /// Apply the database migrations with DATABASE_ADMIN_URL or, if not set, DATABASE_URL
    Migrate,
    /// Compute missing vectors of the configured embedding model, also while a server runs
    Reembed(ReembedArguments),
    /// Chat with a running server; interactive without a message
    Chat(ChatArguments),
    /// Store a memory in a running server
    Remember(RememberArguments),
    /// Search the memory of a running server
    Recall(RecallArguments),
    /// Import files and folders into the memory of a running server
    ///
    /// Markdown and plain text files (.md, .markdown, .txt) become documents. The id of a document is its path from the last
    /// component of PATH on; importing it again replaces it. Each line of a .jsonl file becomes a memory: an object with
    /// `content` and optionally `id`, `source_type`, `tags`, `created_at` (RFC 3339), `metadata` (strings) and `supersedes`.
    /// Files and lines that cannot be imported are skipped and listed at the end.
    ///
    /// After an interruption, the same command resumes where it stopped.
    Import(ImportArguments),
}

#[derive(Debug, Args)]
pub struct ReembedArguments {
    /// Delete the vectors of all other models afterwards
    #[arg(long)]
    pub prune: bool,
}

#[derive(Debug, Args)]
pub struct Connection {
    /// Address of the server
    #[arg(long, default_value = DEFAULT_ADDR, value_name = "URL")]
    pub addr: String,
    /// PEM file with the certificate authority of a server that uses TLS
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// User id that owns the memories and chats
    #[arg(long, default_value = "me", value_name = "ID")]
    pub user: String,
    /// Bearer token, if the server requires one
    #[arg(long, env = "AGENT_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
}

#[derive(Debug, Args)]
pub struct ChatArguments {
    #[command(flatten)]
    pub connection: Connection,
    /// The message; without it, an interactive session that ends with Ctrl-D
    #[arg(value_name = "MESSAGE")]
    pub message: Option<String>,
    /// Session id of the conversation; without it, a new one
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
    /// Language of status and error texts (BCP 47 tag); without it, the language of the message
    #[arg(long, value_name = "TAG")]
    pub language: Option<String>,
    /// IANA time zone for dates and times, for example Asia/Shanghai
    #[arg(long, value_name = "ZONE", default_value = "")]
    pub timezone: String,
    /// Model to use instead of the configured one
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Answer without retrieving memories
    #[arg(long)]
    pub no_memory: bool,
}

#[derive(Debug, Args)]
pub struct RememberArguments {
    #[command(flatten)]
    pub connection: Connection,
    /// Content of the memory
    #[arg(value_name = "TEXT")]
    pub text: String,
    /// Tag to filter by later; repeatable
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RecallArguments {
    #[command(flatten)]
    pub connection: Connection,
    /// Text to search for
    #[arg(value_name = "QUERY")]
    pub query: String,
    /// Maximum number of memories to show, 1 to 100
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=100))]
    pub limit: i32,
    /// Minimum score, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "SCORE")]
    pub min_score: f32,
}

#[derive(Debug, Args)]
pub struct ImportArguments {
    #[command(flatten)]
    pub connection: Connection,
    /// Files, and folders to import recursively without hidden files
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Tag for everything that is imported; repeatable
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Also import files that an earlier import has done and that have not changed
    #[arg(long)]
    pub again: bool,
}
