"""Names for runs that nobody named: an adjective and an animal."""

from __future__ import annotations

import os

ADJECTIVES = (  # noqa: SIM905 - words read better as words
    "able agile airy alert amber ample aqua azure balmy blithe bold brave breezy brief bright brisk bronze calm candid "
    "careful cheery chosen civil classy clean clear clever coral cosy crisp curious daring dapper deft diligent dreamy "
    "dusky eager early earnest easy elated elegant emerald exact fabled fair famous fancy fast festive fiery fine firm "
    "fleet floral fluent fond frank free fresh frosty gallant gentle giddy glad gleaming golden graceful grand grateful "
    "green handy happy hardy hazel hearty honest humble icy ideal indigo ivory jade jaunty jolly jovial joyful keen kind "
    "lively lofty loyal lucid lucky lunar magic mellow merry mighty mild mindful misty modest musical neat nimble noble "
    "novel olive opal patient pearly plucky polite prime proud pure quick quiet radiant rapid ready regal robust rosy royal "
    "ruby rustic sage scarlet serene sharp shiny silent silver sincere sleek smart smooth snowy solar solid sonic spry "
    "stable starry steady stellar stout sunny super swift tactful tender tidy topaz tranquil trusty upbeat valiant vast "
    "velvet vibrant violet vivid warm wily winged wise witty young zesty"
).split()

ANIMALS = (  # noqa: SIM905 - words read better as words
    "adder albatross alpaca ant anteater antelope auk axolotl badger bat bear beaver bee beetle bison boa bobcat bonobo "
    "buffalo bumblebee bunting butterfly buzzard camel capybara caracal cardinal caribou cat chameleon cheetah chinchilla "
    "chipmunk cicada clam cobra cockatoo condor coot cormorant cougar coyote crab crane cricket crow cuckoo curlew deer "
    "dingo dolphin donkey dove dragonfly duck eagle echidna eel egret eland elephant elk emu ermine falcon ferret finch "
    "firefly flamingo fox frog gannet gazelle gecko gerbil gibbon giraffe goat goldfinch goose gopher goshawk grebe grouse "
    "guppy hamster hare harrier hawk hedgehog heron herring hippo hornet horse hummingbird ibex ibis iguana impala jackal "
    "jaguar jay jellyfish kestrel kingfisher kite kiwi koala kudu lark lemming lemur leopard linnet lion lizard llama "
    "lobster loon lynx macaw magpie manatee mantis marlin marmot marten meerkat merlin mole mongoose moose moth mouse mule "
    "narwhal newt nightjar numbat ocelot octopus okapi opossum orca oriole oryx osprey ostrich otter owl ox oyster panda "
    "pangolin panther parrot partridge peacock pelican penguin perch petrel pheasant pigeon pika pike pipit platypus plover "
    "polecat pony porcupine possum puffin puma python quail quokka rabbit raccoon raven reindeer robin rook salmon seahorse "
    "seal serval shark sheep shrew skink skylark sloth snail snipe sparrow spider squid squirrel starfish stoat stork "
    "swallow swan swift tapir tern thrush tiger toad tortoise toucan trout tuna turtle urchin viper vole wallaby walrus "
    "warbler wasp weasel whale wigeon wildcat wolf wombat woodpecker wren yak zebra zebu"
).split()


def generate() -> str:
    """A name such as ``brave-otter``. Not unique; ids are."""
    # From the operating system: a seed that the user sets, or a fork shares, would name every run alike.
    chance = int.from_bytes(os.urandom(4), "big")
    chance, first = divmod(chance, len(ADJECTIVES))
    return f"{ADJECTIVES[first]}-{ANIMALS[chance % len(ANIMALS)]}"
