//! The agent's log, on standard error: text for people, or a JSON object a line.

use super::config::LogFormat;
use crate::monitor::time::rfc3339;
use log::LevelFilter;
use std::io::Write;
use std::time::SystemTime;

/// A second call does nothing.
pub fn init(format: LogFormat, filter: &str) {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(filter);
    if !filter.contains(['=', ',']) {
        // A level alone means this program; what the loader says of every relocation has to be asked for by name.
        builder
            .filter_module("aya", LevelFilter::Info)
            .filter_module("aya_obj", LevelFilter::Info);
    }
    if format == LogFormat::Json {
        builder.format(|out, record| {
            let line = serde_json::json!({
                "time": rfc3339(SystemTime::now()),
                "level": record.level().as_str().to_ascii_lowercase(),
                "target": record.target(),
                "message": record.args().to_string(),
            });
            writeln!(out, "{line}")
        });
    }
    // Someone else's logger is as good.
    let _ = builder.try_init();
}
