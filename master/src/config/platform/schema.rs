//! The manual of `platform.toml`, made from the comments in [`super::file`]: as a JSON Schema, and as text.

use super::file::PlatformFile;
use serde_json::Value;

/// How wide the text is.
const WIDTH: usize = 100;
const INDENT: &str = "    ";

/// The file as a JSON Schema.
pub fn platform_schema() -> Value {
    schemars::schema_for!(PlatformFile).to_value()
}

/// The keys with what they mean, as TOML's tables, for people.
pub fn platform_manual() -> String {
    let schema = platform_schema();
    let mut text = String::new();
    wrap(&mut text, "", &description(&schema));
    table(&mut text, &schema, &schema);
    for (name, property) in properties(&schema) {
        let own = target(&schema, property);
        if has_keys(own) {
            text.push('\n');
            text.push_str(&format!("[{name}]\n"));
            wrap(&mut text, "", &description(own));
            table(&mut text, &schema, own);
        }
    }
    text
}

/// The keys of one table, without the tables in it.
fn table(text: &mut String, root: &Value, schema: &Value) {
    for (name, property) in properties(schema) {
        let own = target(root, property);
        if has_keys(own) {
            continue;
        }
        text.push('\n');
        text.push_str(name);
        text.push('\n');
        let about = match description(property) {
            about if about.is_empty() => description(own),
            about => about,
        };
        wrap(text, INDENT, &about);
        for (value, about) in values(own) {
            wrap(
                text,
                INDENT,
                format!("- {value}: {about}").trim_end_matches([':', ' ']),
            );
        }
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

fn has_keys(schema: &Value) -> bool {
    properties(schema).next().is_some()
}

/// What a property is, behind a reference and whether or not it may be left out.
fn target<'a>(root: &'a Value, property: &'a Value) -> &'a Value {
    let choices = property.get("anyOf").and_then(Value::as_array);
    let meant = choices
        .into_iter()
        .flatten()
        .find(|choice| choice.get("type") != Some(&Value::from("null")))
        .unwrap_or(property);
    let name = meant
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|reference| reference.strip_prefix("#/$defs/"));
    name.and_then(|name| root.get("$defs")?.get(name))
        .unwrap_or(meant)
}

/// The words that a key may have as its value, each with what it means.
fn values(schema: &Value) -> Vec<(String, String)> {
    let words = |choice: &Value| -> Vec<(String, String)> {
        let about = description(choice);
        let one = choice.get("const").into_iter();
        one.chain(
            choice
                .get("enum")
                .and_then(Value::as_array)
                .into_iter()
                .flatten(),
        )
        .filter_map(Value::as_str)
        .map(|word| (format!("\"{word}\""), about.clone()))
        .collect()
    };
    let mut found: Vec<(String, String)> = schema
        .get("oneOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .flat_map(words)
        .collect();
    if found.is_empty() {
        let bare = schema.get("enum").and_then(Value::as_array);
        found.extend(
            bare.into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(|word| (format!("\"{word}\""), String::new())),
        );
    }
    found
}

fn description(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str);
    let words: Vec<&str> = text.unwrap_or_default().split_whitespace().collect();
    words.join(" ")
}

/// Adds the text in lines of at most [`WIDTH`] characters.
fn wrap(text: &mut String, indent: &str, about: &str) {
    let mut line = indent.to_owned();
    for word in about.split(' ').filter(|word| !word.is_empty()) {
        let is_begun = line.len() > indent.len();
        if is_begun && line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = indent.to_owned();
        } else if is_begun {
            line.push(' ');
        }
        line.push_str(word);
    }
    if line.len() > indent.len() {
        text.push_str(&line);
        text.push('\n');
    }
}
