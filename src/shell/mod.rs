//! The terminal: a shell built on the printing, completion and commands of datafusion-cli.
