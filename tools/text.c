/* SPDX-License-Identifier: MIT
 * text.c: prose of several kinds (a story, an explanation, a conversation, notes, a letter), so
 * that a comparison needs no file. It was written for this purpose and is copied from nowhere.
 * Changing it changes every figure that was published with it. */
#include "text.h"

#include <stddef.h>

const char *const cmp_text[] = {
    "The ferry to Harrow Island left at seven, or at whatever hour Captain Ilse "
    "Brandt decided was seven. She had owned a watch once. It had gone over the "
    "rail in a November gale along with a crate of onions and her second-best hat, "
    "and she had never seen the need to replace any of them. The passengers learned "
    "to listen for the engine instead. When the old diesel coughed twice and then "
    "settled into its steady mutter, there were four minutes left to find the "
    "ticket, finish the coffee and run.\n\n",
    "On the morning this story begins, only one person ran. He was a tall man with "
    "a suitcase in one hand and a long wooden box under his other arm, and he ran "
    "the way people run who have not done it since school: knees high, head back, "
    "box swinging. He reached the end of the pier just as the deckhand threw off "
    "the last line. There was a yard of green water between the boat and the "
    "stones. He looked at the water, then at the box, and stopped.\n\n",
    "\"Throw it,\" said the captain from the wheelhouse window.\n\n",
    "\"I can't throw it,\" the man said. \"It's a clock.\"\n\n",
    "\"Then throw the suitcase and carry the clock.\"\n\n",
    "He considered this for what seemed to the watching passengers like a very long "
    "time. Then he threw the suitcase, which the deckhand caught against his chest "
    "with a grunt, put both arms around the box as though it were a sleeping child, "
    "and jumped. He landed on both feet, sat down hard on a coil of rope, and began "
    "at once to listen to the box with his ear pressed against the wood.\n\n",
    "\"Still going?\" asked the captain.\n\n",
    "\"Still going,\" he said, and smiled for the first time.\n\n",
    "His name was Anton Reyes, and he had been hired by the island council to "
    "repair the clock in the tower of the old customs house. It had stopped eleven "
    "years ago at twenty past four. Nobody had minded at first. Twenty past four is "
    "a pleasant time of day: too late to begin anything difficult, too early to go "
    "home. But the school had a new teacher, and the new teacher held that children "
    "who grow up beneath a clock that is always wrong will come to believe that "
    "time is a matter of opinion. She had written to the council eleven times, once "
    "for every year, all in the same week. The council had given in.\n\n",
    "The customs house stood at the top of the only street. Anton climbed the tower "
    "that same afternoon with a lamp and a bag of tools, and with the teacher "
    "behind him, because she had the key and did not mean to give it up. There were "
    "ninety-three steps. At the top was a small square room, white with the "
    "droppings of generations of pigeons, and in the middle of it stood the "
    "movement: an iron frame as big as a bed, with brass wheels in it, two drums "
    "wound with steel cable, and a pendulum that disappeared through a slot in the "
    "floor.\n\n",
    "\"Can you mend it?\" the teacher asked. Her name was Maud Okafor. She had a way "
    "of asking questions as if she already held the answers and was only marking.\n\n",
    "He did not reply for some minutes. He held up the lamp and looked at each "
    "wheel in turn, and put out one finger and pushed, very gently, at the edge of "
    "the smallest. It moved by the width of a hair and sprang back.\n\n",
    "\"It isn't broken,\" he said at last. \"It has been stopped.\"\n\n",
    "\"By whom?\"\n\n",
    "He pointed. Between two teeth of the third wheel, where nobody would look who "
    "was not a clockmaker, somebody had placed a folded piece of paper, pressed as "
    "flat and as hard as a splinter of wood. He drew it out with a pair of "
    "tweezers. The great wheel gave a sigh, the pendulum stirred below the floor, "
    "and far over their heads something that had waited for eleven years said, "
    "quite distinctly, tick.\n\n",
    "They unfolded the paper together on the windowsill. It was a page from a "
    "school exercise book, in a child's round hand. It said: Please leave it. It is "
    "the only time of day when he is at home.\n\n",
    "Neither of them spoke for a while. Through the window they could see the whole "
    "of the island: the street, the harbour, the nets drying on their poles, and "
    "beyond them the line where the grey water met the grey sky. Twenty past four. "
    "There had been a boat, Maud remembered, in her predecessor's diary. A boat "
    "that used to come in every day at four o'clock, and one day in spring did not.\n\n",
    "\"What will you do?\" she asked, and this time it was a real question.\n\n",
    "Anton folded the paper along its old creases. He stood for a moment with his "
    "hand upon the frame, and felt it beat. \"I was paid to make it go,\" he said. "
    "\"Nobody told me to make it strike.\" He turned a small brass lever, and bent "
    "down, and began to sweep the floor.\n\n",
    "So the clock on Harrow Island goes now, and keeps good time, and the children "
    "are never late for school without knowing it. But it makes no sound at all, "
    "except once a day. At twenty past four in the afternoon it strikes a single "
    "note, low and clear, which can be heard on the water for two miles. The "
    "captain sets no watch by it, as she has none. She only lifts her cap.\n\n",
    "How a lock lifts a boat\n\n",
    "A canal lock is one of those machines that seem obvious once they have been "
    "seen and almost impossible before. The problem is easily stated. Water lies "
    "level, hills do not, and a boat that floats on the water cannot climb. A river "
    "solves the difference in height by running downhill, which is of no use to a "
    "barge that wants to travel up. What is needed is a stretch of water that can "
    "be at one height now and at another height ten minutes later.\n\n",
    "The lock is exactly that: a chamber with a gate at each end, long enough for "
    "one boat, standing between the upper and the lower reach of the canal. To go "
    "up, the boat enters from below while the lower gate is open and the water in "
    "the chamber stands level with the lower reach. The gate is closed behind it. "
    "Then small openings called paddles are raised at the upper end, and water runs "
    "in from above. No pump is used at any time; the hill does the work. The "
    "chamber fills, the boat rises with it, and when the water inside has come "
    "level with the upper reach the pressure on both sides of the upper gate is the "
    "same and it can be pushed open by one person leaning upon a beam.\n\n",
    "That last point deserves some attention, because it explains the shape of the "
    "gates. While the levels differ, the force on a gate is enormous. A gate three "
    "metres wide that holds back two metres of water carries a load of about six "
    "tonnes. No hand could open it, and that is the safety of the whole "
    "arrangement: the lock cannot be opened at the wrong moment, since the water "
    "itself holds it shut. The two leaves of the gate meet at an angle that points "
    "towards the higher side, so that the more the water presses, the more tightly "
    "they are wedged together. When the difference is gone the force is gone, and "
    "the leaves swing freely.\n\n",
    "Every passage costs water. Each time that a boat goes through, one chamber "
    "full of water moves from the upper reach to the lower one, and it does not "
    "come back. A chamber of twenty metres by four, with a lift of two metres and a "
    "half, takes two hundred cubic metres for each boat. On a busy summer day with "
    "forty boats that makes eight thousand cubic metres, and all of it has to be "
    "supplied at the summit by streams and reservoirs. In a dry year it is not the "
    "length of the canal that limits the traffic, but the rain that falls upon its "
    "highest mile.\n\n",
    "Engineers have found several ways to save. The simplest is to wait: if a boat "
    "going up is followed by one going down, the same filling serves for both, and "
    "the cost is halved. Another is the side pond, a basin next to the chamber at "
    "half its height. When the chamber is emptied, the upper half of its water is "
    "let into the pond instead of being lost, and the next time the chamber is "
    "filled the pond gives it back. With one pond a third of the water is saved, "
    "with two ponds one half. Each further pond saves less than the one before, and "
    "costs as much to dig. It is the same with most devices that keep something for "
    "later: the first shelf is the most useful one.\n\n",
    "A conversation about bread\n\n",
    "\"You have written here that it should rise until doubled,\" said Piet, holding "
    "the card at arm's length. \"Doubled in what? Height? Weight?\"\n\n",
    "\"Volume,\" said his grandmother. She was looking for her glasses, which were on "
    "her head.\n\n",
    "\"And how do I measure the volume of something which has no edges?\"\n\n",
    "\"You don't measure it. You look at it.\"\n\n",
    "\"I looked at it an hour ago. I looked at it just now. It seemed the same both "
    "times.\"\n\n",
    "\"Then it hasn't doubled.\"\n\n",
    "Piet laid the card on the table. He was a careful young man who repaired "
    "instruments for a living, and he had come for the weekend with the intention "
    "of learning, once and for all, how to make the bread that he remembered. He "
    "had brought a scale that weighed to a tenth of a gram, and a thermometer. So "
    "far he had filled four pages with figures. His grandmother had filled the "
    "kitchen with flour.\n\n",
    "\"How much salt was that?\" he asked, as her hand went past the bowl.\n\n",
    "\"Enough.\"\n\n",
    "\"May I weigh your hand?\"\n\n",
    "She laughed until she had to sit down. But when she had finished laughing she "
    "took the jar, and poured a small heap into her palm, and then, to his "
    "surprise, let it slide on to the pan of the scale. It weighed eleven grams and "
    "two tenths. She poured again: eleven and four. Again: eleven and one. Piet "
    "wrote it all down and looked at the three figures for a while.\n\n",
    "\"You have been measuring all the time,\" he said.\n\n",
    "\"Of course I have. You thought that I was guessing, because I don't write it "
    "down.\" She got up, floured the board, and turned out the dough. \"The card is "
    "for people who aren't here. If you are here, you can look. Press it with a "
    "finger. No, not like that, you aren't ringing a bell. Slowly. Now watch the "
    "dent.\"\n\n",
    "They watched the dent. It filled, but not quite, and not at once.\n\n",
    "\"When it comes back fast, it is too soon,\" she said. \"When it doesn't come "
    "back at all, it is too late. When it comes back like an old man getting out of "
    "a chair, put it in the oven.\"\n\n",
    "Piet wrote that down too. Then he crossed out the word doubled on the card, "
    "and in its place, in his small square letters, he wrote: like an old man.\n\n",
    "Notes on a field of barley\n\n",
    "The field lies on a slope that faces south-east, nine hectares of light soil "
    "over chalk, with a hedge on three sides and a wood on the fourth. It was sown "
    "in the second week of March, after a winter that had been wet until January "
    "and then very cold. The seed was drilled at a depth of four centimetres, in "
    "rows that follow the contour and not the fall of the ground, because the heavy "
    "rain of two years ago had cut gullies along the old rows and carried a good "
    "part of the topsoil down to the road.\n\n",
    "By the middle of April the rows could be seen from the gate. Growth was even, "
    "except in a strip along the wood, where the deer come out at dusk, and in a "
    "patch of perhaps a quarter of a hectare near the lower corner. In that patch "
    "the plants were short and yellowish. Three explanations were offered. The man "
    "who drives the drill thought that the seed had gone in too deep, since the "
    "ground is softer there. The neighbour suspected a pest in the soil and advised "
    "that the crop be sprayed. The owner believed that water stood under the "
    "surface.\n\n",
    "It would have been easy to act on any of the three. Instead they dug. Five "
    "holes were made inside the patch and five outside it, each half a metre deep, "
    "and what was found was written down before anybody was allowed to argue. The "
    "seeds lay at the same depth everywhere, so the first explanation was wrong. "
    "There were no more grubs in the bad holes than in the good ones, so the second "
    "was wrong as well. In four of the five bad holes water gathered at the bottom "
    "within an hour; in the good holes it did so in none. An old clay drain was "
    "found to be blocked by the roots of a willow, sixty metres away and on the far "
    "side of the hedge.\n\n",
    "The repair took one day and cost less than the spray. What is worth "
    "remembering is the order in which things were done. The three men had more "
    "than a hundred years of experience between them, and each of them was certain. "
    "Had they gone by the most confident voice, they would have treated a disease "
    "that was not there, and in the following spring the patch would have been "
    "yellow again. Ten holes and a sheet of paper settled the question in a "
    "morning.\n\n",
    "A letter found in a library book\n\n",
    "Dear reader, whoever you are: you have reached page two hundred and twelve, "
    "which means that you are either patient or snowed in. I left this letter here "
    "because it is the place where I almost gave up. The next chapter is about the "
    "price of tin, and it is every bit as dull as you fear. Do not skip it. There "
    "is a sentence near the end of it, in the middle of a table of weights, that "
    "changes the meaning of everything before. I shall not tell you which. I have "
    "read this book four times, and each time I have met somebody at that sentence "
    "whom I had not noticed on the way.\n\n",
    "I wonder where you are sitting. When I read it first I was on a night train, "
    "in the corner of a compartment that smelled of oranges, and a soldier opposite "
    "was asleep with his boots on the seat. When I read it last I was in the "
    "hospital on Castle Street, and the window would not close. The words were the "
    "same, I suppose, and yet I could swear that someone had moved them about. If "
    "you have a pencil, put your initials and the date below mine on the inside of "
    "the back cover. There are seven of us so far. One of us, to judge by the date, "
    "must be very old by now, and one was evidently a child, as she has drawn a "
    "horse.\n",
    NULL,
};
