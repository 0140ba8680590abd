//! Plays the steps of the story one after the other, and again from the first, and prints each as it happens.

use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::printer::Printer;
use super::scenes::{Scene, Scenes};
use crate::cli::text::{Line, Palette, Style};

/// Tells the story until the demo ends. The first time each step says where to look and how to repeat it.
pub(super) async fn tell_story(scenes: Scenes, step: Duration, palette: Palette, printer: Printer) {
    scenes.caller.wait_until_ready().await;
    let started = Instant::now();
    let mut beginnings = interval(step);
    beginnings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for round in 1_u64.. {
        for number in 0..Scenes::COUNT {
            beginnings.tick().await;
            if (round, number) == (2, 0) {
                printer.print("\nThe story begins again, in fewer words.\n".to_owned());
            }
            let scene = scenes.play(number).await;
            // Not if the process is stopping, which may have broken off the requests.
            scenes.caller.wait_until_ready().await;
            printer.print(scene_text(&scene, number, started.elapsed(), round == 1, palette));
        }
    }
}

fn scene_text(scene: &Scene, number: usize, elapsed: Duration, is_first: bool, palette: Palette) -> String {
    let seconds = elapsed.as_secs();
    let title = format!(
        "[{}:{:02}] {} of {}: {}",
        seconds / 60,
        seconds % 60,
        number + 1,
        Scenes::COUNT,
        scene.title
    );
    let mut text = format!("\n{}\n", Line::new(title, Style::Bold).render(palette));
    for fact in &scene.facts {
        text += &format!("  {fact}\n");
    }
    if is_first {
        text += &format!("  On the status page: {}\n", scene.look_at);
        for command in &scene.commands {
            text += &format!("  $ {command}\n");
        }
    }
    text
}
