//! `/logging`.

use http::{Response, StatusCode};

use super::{Body, TEXT, query::Query, reply};
use crate::logging::{LevelError, Logging};

const USAGE: &str = "usage: /logging?<name>=<level> (change single level)\n\
    usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
    usage: /logging?level=<level> (change all levels)\n\
    levels: trace debug info warning error critical off \n";

/// Changes levels where the request says so, and lists them.
pub fn answer(logging: &Logging, query: &Query) -> Response<Body> {
    let (status, head) = match change(logging, query) {
        Ok(()) => (StatusCode::OK, String::new()),
        Err(error) => (StatusCode::BAD_REQUEST, format!("error: {error}\n\n{USAGE}")),
    };
    let mut text = head + "active loggers:\n";
    for (name, level) in logging.levels() {
        text.push_str(&format!("  {name}: {}\n", level.name()));
    }
    text.push('\n');
    reply(status, TEXT, text)
}

fn change(logging: &Logging, query: &Query) -> Result<(), LevelError> {
    let Some((name, value)) = query.iter().next() else { return Ok(()) };
    match name {
        "level" => logging.change_all(value),
        "paths" | "group" => logging.change_components(value),
        name => logging.change_components(&format!("{name}:{value}")),
    }
}
