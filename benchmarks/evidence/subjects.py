# SPDX-License-Identifier: Apache-2.0
"""All kinds of pictures there are, and the seeds that models of each are trained from."""

from . import pages, signs

SUBJECTS = {subject.name: subject for subject in (signs.SUBJECT, pages.SUBJECT)}
SEEDS = (1, 2, 3)
