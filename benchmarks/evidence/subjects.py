# SPDX-License-Identifier: Apache-2.0
"""All kinds of pictures there are."""

from . import pages, signs

SUBJECTS = {subject.name: subject for subject in (signs.SUBJECT, pages.SUBJECT)}
