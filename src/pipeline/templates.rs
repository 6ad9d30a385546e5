//! Templates: texts with `{{placeholders}}` that are resolved once, against the state.
//!
//! One pass from left to right: what a placeholder brings in is never looked at again, so a customer's text
//! cannot become a placeholder. `{{name}}` is looked up by precedence session > user > conversation > global;
//! `{{scope.name}}` in one scope; further parts go into objects by name and into lists by index. Blanks inside
//! the braces do not count. `{{}}` and braces without a partner are text.

use serde_json::Value;

use crate::job::{OnUnresolved, Scope};

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// As written, braces included, and the path between them.
    Placeholder {
        written: String,
        path: String,
    },
}

/// What became of a template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The paths that nothing resolved, as between the braces, in order, each once.
    pub unresolved: Vec<String>,
}

/// Why a template has no text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RenderError {
    /// The text would be longer than the limit.
    TooLarge,
    /// A placeholder resolved to nothing, and the job refuses that.
    Unresolved(String),
}

impl Template {
    /// Reads a template; every text is one.
    #[must_use]
    pub fn parse(source: &str) -> Self {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = source;
        while let Some(close) = rest.find("}}") {
            // The innermost opening pair belongs to this closing one: "{{ {{a}}" has a placeholder a.
            let Some(open) = rest[..close].rfind("{{") else {
                text.push_str(&rest[..close + 2]);
                rest = &rest[close + 2..];
                continue;
            };
            let path = rest[open + 2..close].trim();
            text.push_str(&rest[..open]);
            if path.is_empty() || path.contains(['{', '}']) {
                text.push_str(&rest[open..close + 2]);
            } else {
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                parts.push(Part::Placeholder { written: rest[open..close + 2].to_owned(), path: path.to_owned() });
            }
            rest = &rest[close + 2..];
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Self { parts }
    }

    /// The paths of its placeholders, in order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Placeholder { path, .. } => Some(path.as_str()),
        })
    }

    /// The text that the state makes of it, at most `limit` bytes. `look_up` tells the value of a key in a scope;
    /// reserved variables have none.
    ///
    /// # Errors
    /// [`RenderError`].
    pub fn render<'v>(
        &self,
        look_up: impl Fn(Scope, &str) -> Option<&'v Value>,
        on_unresolved: OnUnresolved,
        limit: usize,
    ) -> Result<Rendered, RenderError> {
        let mut rendered = Rendered::default();
        for part in &self.parts {
            match part {
                Part::Text(text) => rendered.text.push_str(text),
                Part::Placeholder { written, path } => match resolve(&look_up, path) {
                    Some(value) => push(&mut rendered.text, value),
                    None => {
                        match on_unresolved {
                            OnUnresolved::Keep => rendered.text.push_str(written),
                            OnUnresolved::Empty => {}
                            OnUnresolved::Fail => return Err(RenderError::Unresolved(path.clone())),
                        }
                        if !rendered.unresolved.contains(path) {
                            rendered.unresolved.push(path.clone());
                        }
                    }
                },
            }
            if rendered.text.len() > limit {
                return Err(RenderError::TooLarge);
            }
        }
        Ok(rendered)
    }
}

/// Text of a value inside a text: strings as they are, everything else as compact JSON.
fn push(text: &mut String, value: &Value) {
    match value {
        Value::String(inner) => text.push_str(inner),
        other => text.push_str(&other.to_string()),
    }
}

fn resolve<'v>(look_up: impl Fn(Scope, &str) -> Option<&'v Value>, path: &str) -> Option<&'v Value> {
    let mut parts = path.split('.');
    let first = parts.next()?;
    let look_up = |scope, key| look_up(scope, key).filter(|value| !value.is_null());
    let mut value = match (Scope::parse(first), parts.clone().next()) {
        (Some(scope), Some(key)) => {
            parts.next();
            look_up(scope, key)?
        }
        _ => Scope::BY_PRECEDENCE.into_iter().find_map(|scope| look_up(scope, first))?,
    };
    for part in parts {
        value = match value {
            Value::Object(fields) => fields.get(part)?,
            Value::Array(items) => items.get(part.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(value).filter(|value| !value.is_null())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::job::Name;

    fn state() -> BTreeMap<Name, Value> {
        let entries = [
            (Scope::Global, "tier", json!("global")),
            (Scope::Conversation, "tier", json!("conversation")),
            (Scope::User, "tier", json!("user")),
            (Scope::Conversation, "user", json!({"tier": "shadowed", "mail": "a@b"})),
            (Scope::Session, "cart", json!({"total": 149.99, "items": ["a", {"b": 1}]})),
            (Scope::Session, "sly", json!("{{tier}} {{user.tier}}")),
            (Scope::Session, "nothing", Value::Null),
        ];
        entries.into_iter().map(|(scope, key, value)| (Name::new(scope, key), value)).collect()
    }

    fn with(template: &str, policy: OnUnresolved) -> Result<Rendered, RenderError> {
        let state = state();
        Template::parse(template).render(|scope, key| state.get(&Name::new(scope, key)), policy, 10_240)
    }

    fn render(template: &str) -> Rendered {
        with(template, OnUnresolved::Keep).unwrap()
    }

    #[test]
    fn scopes_have_their_precedence() {
        assert_eq!(render("{{tier}}/{{global.tier}}/{{ conversation.tier }}").text, "user/global/conversation");
    }

    #[test]
    fn a_scope_wins_over_a_variable_of_its_name() {
        assert_eq!(render("{{user.tier}}").text, "user");
        assert_eq!(render("{{conversation.user.mail}}").text, "a@b");
        assert_eq!(render("{{user.mail}}").unresolved, ["user.mail"]);
    }

    #[test]
    fn what_is_no_string_is_json() {
        assert_eq!(render("{{cart.total}} {{cart.items.0}} {{cart.items.1}}").text, "149.99 a {\"b\":1}");
    }

    #[test]
    fn a_substituted_value_is_never_scanned_again() {
        let rendered = render("{{sly}}");
        assert_eq!(rendered.text, "{{tier}} {{user.tier}}");
        assert!(rendered.unresolved.is_empty());
    }

    #[test]
    fn odd_braces_are_text() {
        for text in ["{{}}", "{{ }}", "{{tier", "tier}}", "}}{{", "{tier}", "{{{{}}}}", ""] {
            let rendered = render(text);
            assert_eq!((rendered.text.as_str(), rendered.unresolved.len()), (text, 0), "{text}");
        }
        assert_eq!(render("{{ {{tier}}").text, "{{ user");
        assert_eq!(render("{{{tier}}}").text, "{user}");
    }

    #[test]
    fn the_unresolved_are_kept_emptied_or_refused() {
        let template = "a {{ no.such }} b {{nothing}} {{ no.such }}";
        let kept = with(template, OnUnresolved::Keep).unwrap();
        assert_eq!(kept.text, template);
        assert_eq!(kept.unresolved, ["no.such", "nothing"]);
        assert_eq!(with(template, OnUnresolved::Empty).unwrap().text, "a  b  ");
        assert_eq!(with(template, OnUnresolved::Fail), Err(RenderError::Unresolved("no.such".to_owned())));
    }

    #[test]
    fn a_text_that_grows_without_end_is_refused() {
        assert_eq!(with(&"{{cart}}".repeat(1_000), OnUnresolved::Keep), Err(RenderError::TooLarge));
    }

    proptest! {
        /// Whatever the values hold, placeholders among it: the text is the concatenation, made in one pass.
        #[test]
        fn what_is_brought_in_is_text_whatever_it_says(
            parts in proptest::collection::vec(prop_oneof!["[a-z ]{0,4}".prop_map(Ok), (0usize..3).prop_map(Err)], 0..12),
            values in proptest::collection::vec("(\\{\\{|\\}\\}|k[0-2]|[{} a-z.]){0,8}", 3),
        ) {
            let source = |part: &Result<String, usize>| match part {
                Ok(text) => text.clone(),
                Err(number) => format!("{{{{k{number}}}}}"),
            };
            let expected = |part: &Result<String, usize>| match part {
                Ok(text) => text.clone(),
                Err(number) => values[*number].clone(),
            };
            let template = Template::parse(&parts.iter().map(source).collect::<String>());
            let state = values.iter().map(|value| json!(value)).collect::<Vec<_>>();
            let looks = std::cell::Cell::new(0);
            let look_up = |scope: Scope, key: &str| {
                looks.set(looks.get() + 1);
                let number = key.strip_prefix('k')?.parse::<usize>().ok()?;
                state.get(number).filter(|_| scope == Scope::Global)
            };
            let rendered = template.render(look_up, OnUnresolved::Fail, 10_240).unwrap();
            prop_assert_eq!(rendered.text, parts.iter().map(expected).collect::<String>());
            prop_assert_eq!(looks.get(), 4 * parts.iter().filter(|part| part.is_err()).count());
        }

        #[test]
        fn every_text_is_a_template_and_renders(text in "[{} a-z.0]{0,60}|\\PC{0,60}") {
            let template = Template::parse(&text);
            let rendered = template.render(|_, _| None, OnUnresolved::Keep, 10_240).unwrap();
            prop_assert_eq!(rendered.text, text);
        }
    }
}
