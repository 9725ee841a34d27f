//! The words that instructions are about: real words and made-up words. None of them is a word of the instructions' own wording.
//!
//! The tokenizer spells content words letter by letter, so they must not be in its vocabulary.
//! Made-up words keep the space large enough that reversing has to be learned rather than memorized.

use super::dice::Dice;
use super::vocabulary::is_instruction_word;

const REAL: &str = "\
ant arm axe bag bat bed bee bell bird boat bone book boot bowl box brick bread bridge broom brush bucket bus \
butter button cabin cactus cake camel candle canoe canvas car carpet carrot castle cat cave chain chalk cheese \
cherry chess chicken circle city clam clock cloud clover coat coconut coin comet cookie copper coral corn cotton cow \
crab crane crayon cricket crow crown cup curtain daisy deer desert diamond dog dollar dolphin donkey door dragon \
dress drum duck dust eagle ear earth egg elbow elephant engine eye falcon fan farm feather fence fern ferry \
field fig finger fire fish flag flame flask flower flute fly foam fog foot forest fork fossil fox frog fruit \
garden garlic gate giraffe glass globe glove goat gold goose grape grass guitar hammer hand harbor harp hat hawk \
hay heart hen hero hill honey hook horn horse house ice igloo ink insect iron island ivory ivy jacket jaguar jam \
jar jelly jewel jungle kettle key king kite kitten knee knife koala ladder lake lamb lamp lantern lark leaf \
lemon leopard lily lime lion lizard log lotus magnet mango maple marble market mask meadow melon metal milk mint \
mirror mitten money monkey moon mop moss moth motor mountain mouse mug museum mushroom nail napkin nest net night nose \
nut oak oar oasis oat ocean olive onion orange orbit orchid otter oven owl oyster paddle palace palm panda paper \
parrot pasta peach peanut pearl pebble pen pencil penguin pepper piano pig pigeon pillow pilot pine pirate planet \
plum pocket pond pony potato powder puppy puzzle quartz queen quilt rabbit radio rain rake raven ribbon rice ring \
river road robin robot rocket roof rope rose ruby rug saddle sail salad salmon salt sand scarf school sea seal \
seed shark sheep shell ship shoe shore silk silver sky sled snail snow soap sock sofa soup spider sponge spoon \
spring squirrel stable star statue steam stone storm stove straw stream sugar summer sun swan sweater table tail tea \
temple tent thunder tiger timber tin toad toast tomato tooth torch tower toy train tray tree truck trumpet tulip \
tunnel turkey turtle uncle unicorn urn valley van vase velvet village vine violin volcano wagon wall walnut \
walrus water wave wax whale wheat wheel whistle willow wind window wing winter wolf wood wool wren yak yard yarn \
zebra zipper zoo";

const CONSONANTS: &[u8] = b"bbcddffgghjkkllmmnnpprrsssttvwyz";
const VOWELS: &[u8] = b"aaeeiioou";

/// Returns a word of exactly `len` letters: sometimes a real one, otherwise a pronounceable made-up one.
pub fn word(len: usize, dice: &mut Dice) -> String {
    loop {
        let word = if dice.chance(0.4) {
            real(len, dice).unwrap_or_else(|| made_up(len, CONSONANTS, VOWELS, dice))
        } else {
            made_up(len, CONSONANTS, VOWELS, dice)
        };
        if !is_instruction_word(&word) {
            return word;
        }
    }
}

/// Returns a word over two consonants and two vowels, in which letters repeat, as needed for counting.
pub fn repetitive_word(len: usize, dice: &mut Dice) -> String {
    loop {
        let consonants = [*dice.pick(CONSONANTS), *dice.pick(CONSONANTS)];
        let vowels = [*dice.pick(VOWELS), *dice.pick(VOWELS)];
        let word = made_up(len, &consonants, &vowels, dice);
        if !is_instruction_word(&word) {
            return word;
        }
    }
}

/// Returns all real words.
pub fn real_words() -> impl Iterator<Item = &'static str> {
    REAL.split(' ')
}

fn real(len: usize, dice: &mut Dice) -> Option<String> {
    let fitting: Vec<&str> = real_words().filter(|word| word.len() == len).collect();
    (!fitting.is_empty()).then(|| (*dice.pick(&fitting)).to_string())
}

fn made_up(len: usize, consonants: &[u8], vowels: &[u8], dice: &mut Dice) -> String {
    let mut word = String::with_capacity(len);
    let mut vowel_next = dice.chance(0.25);
    while word.len() < len {
        let letter = *dice.pick(if vowel_next { vowels } else { consonants });
        word.push(char::from(letter));
        // Some syllables are closed, and some vowels are doubled.
        vowel_next = if vowel_next {
            dice.chance(0.12)
        } else {
            word.len() == 1 || dice.chance(0.85)
        };
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_words_are_plain_distinct_and_no_instruction_words() {
        let mut seen = std::collections::BTreeSet::new();
        for word in real_words() {
            assert!(word.bytes().all(|b| b.is_ascii_lowercase()), "{word}");
            assert!(!is_instruction_word(word), "{word} is an instruction word");
            assert!(seen.insert(word), "{word} twice");
        }
        assert!(seen.len() > 300);
    }

    #[test]
    fn words_have_the_length_asked_for() {
        let mut dice = Dice::new(1, 1);
        for len in 3..9 {
            for _ in 0..50 {
                assert_eq!(word(len, &mut dice).len(), len);
                assert_eq!(repetitive_word(len, &mut dice).len(), len);
            }
        }
    }
}
