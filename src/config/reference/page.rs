//! The reference as a page of the documentation.

use super::tree::read_tree;

const INTRODUCTION: &str = "# Configuration

Every key, with its kind of value and its default. This page is made from the code that reads the file, by
`aoai-lb reference page`, so it cannot disagree with `aoai-lb check`. [conf/aoai-lb.yaml](../conf/aoai-lb.yaml) has the
same keys as an example. Editors that understand JSON schemas complete and check keys with
[conf/aoai-lb.schema.json](../conf/aoai-lb.schema.json), if the first line of a file is
`# yaml-language-server: $schema=` with its path.

Durations have a unit (`250ms`, `5s`, `10m`, `1h`), and so have sizes (`64KiB`, `100MiB`, `1GiB`, `10MB`). In values, `${NAME}` is
replaced by an environment variable of the process or of the file `environment` beside the configuration, `${NAME:-default}` by a
default if the variable is unset or empty, and `${file:/path}` by the content of a file without its last line break. `$$` is
a literal dollar sign. Relative paths start at the directory of the file.

In names of keys, `[]` stands for each item of a list, and `*` for a name.
";

/// The page, in Markdown.
pub fn configuration_page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for (name, block) in &read_tree().keys {
        page += &format!("\n## {name}\n\n| key | value | default | |\n| --- | --- | --- | --- |\n");
        for key in block.walk().into_iter().filter(|key| key.is_named()) {
            let default = key.comment.default.as_ref().map_or_else(String::new, |value| format!("`{value}`"));
            let cells = [format!("`{}`", key.path), key.value_in_words(), default, key.comment.text.clone()];
            page += &format!("| {} |\n", cells.map(|cell| escape_cell(&cell)).join(" | "));
        }
    }
    page
}

/// A bar would end the cell.
fn escape_cell(cell: &str) -> String {
    cell.replace('|', "\\|")
}
